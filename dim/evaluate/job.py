"""The evaluation: what is asked, measured on one set of descriptors or two, written, and held against a baseline."""

import logging
from typing import Any

from dim import files, output, seal, tables
from dim.errors import GateNotMet, UserError, quoted
from dim.evaluate import classification, comparison, evaluation, report, result, sources
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.report import Measured
from dim.evaluate.sources import Source
from dim.evaluate.task import Task, task_of
from dim.output import Output
from dim.search import methods

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluates as `config` says, writes `config.out` and returns the contents of metrics.json.

    Raises UserError before anything is written, and GateNotMet, once all is, where mAP fell too far below the baseline.
    """
    methods.check(config.expansion, config.neighbours)
    baseline = _baseline(config)
    with seal.unchanged(config.manifest, config.ground_truth, config.distractors):  # an extraction reads them again
        task = task_of(config)
        read = sources.read(config, task)
    inputs = {"manifest": config.manifest, "ground_truth": config.ground_truth, "whitening": config.whitening}
    inputs |= {f"descriptors_{number}": source.folder for number, source in enumerate(read, start=1)}
    with output.opened(config.out, "evaluate", config, inputs, read[0].embedding.as_json()) as out:
        measured = [_measured(config, task, source) for source in read]
        metrics = _written(config, task, measured, out)
        out.finish(metrics)
    if baseline is not None and (drop := baseline - metrics["map"]) > config.max_drop:
        raise GateNotMet(
            f"mAP {metrics['map']:.4f} is {drop:.4f} below the {baseline:.4f} of {config.baseline!r}, "
            f"which is more than --max-drop {config.max_drop}",
            metrics,
        )
    return metrics


def _measured(config: EvaluateConfig, task: Task, source: Source) -> Measured:
    search = evaluation.retrieval(task, source.queries, source.database)
    search, steps = methods.applied(search, config.expansion, config.neighbours)
    judged = list(evaluation.judge(task, source.queries, source.database, search))
    evaluation.require_rows(task, source.queries, source.database, judged)
    found = result.metrics(config, task, source, judged, steps)
    for line in (source.name, *result.lines(found)):
        log.info("%s", line)
    return Measured(source, judged, found)


def _written(config: EvaluateConfig, task: Task, measured: list[Measured], out: Output) -> dict[str, Any]:
    """Writes all files of an evaluation and returns what is in metrics.json."""
    first, metrics = measured[0], dict(measured[0].metrics)
    per_query = [evaluation.per_query(one.judged) for one in measured]
    tables.write(out.path(comparison.PER_QUERY), per_query[0])
    if task.protocol.top_k:
        reports = classification.reports(*result.classified(first.judged, task.protocol.top_k))
        files.write_json(out.path("classification_report.json"), reports)
    comparisons = []
    if len(measured) == 2:
        between = comparison.compared(measured[0].source.name, per_query[0], measured[1].source.name, per_query[1])
        tables.write(out.path("compared.parquet"), between.table)
        metrics["compared"] = [{"source": one.source.name, **one.metrics} for one in measured]
        metrics["difference"] = between.as_json()
        comparisons.append(between)
    if config.baseline and (before := comparison.beside(config.baseline)):
        against = comparison.compared(config.baseline, before, first.source.name, per_query[0])
        metrics["against_baseline"] = against.as_json()
        comparisons.append(against)
    for compared in comparisons:
        log.info("%s", compared.line())
    files.write_json(out.path(comparison.METRICS), metrics)
    if config.report:
        report.write(config, task, measured, comparisons, out)
    return metrics


def _baseline(config: EvaluateConfig) -> float | None:
    """The baseline's mAP. Raises UserError where it has none, or is of another protocol."""
    if config.baseline is None:
        if config.max_drop:
            raise UserError("--max-drop needs --baseline metrics.json")
        return None
    comparison.require_own(config.baseline)
    found = files.read_json(config.baseline)
    value: Any = found.get("map") if isinstance(found, dict) else None
    if type(value) not in (int, float) or not 0 <= value <= 1:  # no NaN either, below which nothing can fall
        raise UserError(
            f"{config.baseline!r} holds no map from 0 to 1, but {quoted(value)}; name the metrics.json of an evaluation"
        )
    if found.get("protocol") != config.protocol:
        raise UserError(f"{config.baseline!r} is of protocol {found.get('protocol')!r}, not {config.protocol!r}")
    return float(value)
