"""The evaluation: what is asked, measured on one set of descriptors or two, written, and held against a baseline."""

import logging
from typing import Any

from dim import checksum, files, output, tables
from dim.errors import GateNotMet
from dim.evaluate import baseline, classification, comparison, evaluation, report, result, sources
from dim.evaluate.baseline import Baseline
from dim.evaluate.comparison import Comparison
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
    if config.baseline is None:
        return measure(config)[0]
    before = baseline.read(config.baseline, config.protocol)
    before.require_common(task_of(config))
    metrics, against = measure(config, before)
    if reason := before.unmet(metrics["map"], against, config.max_drop):
        raise GateNotMet(reason, metrics)
    return metrics


def measure(config: EvaluateConfig, before: Baseline | None = None) -> tuple[dict[str, Any], Comparison | None]:
    """`evaluate` without the gate: the contents of metrics.json, and how they compare with the baseline `before`."""
    methods.check(config.expansion, config.neighbours)
    with checksum.unchanged(config.manifest, config.ground_truth, config.distractors):  # an extraction reads them again
        task = task_of(config)
        read = sources.read(config, task)
    inputs = {"manifest": config.manifest, "ground_truth": config.ground_truth, "whitening": config.whitening}
    inputs |= {f"descriptors_{number}": source.folder for number, source in enumerate(read, start=1)}
    with output.opened(config.out, "evaluate", config, inputs, read[0].embedding.as_json()) as out:
        measured = [_measured(config, task, source) for source in read]
        metrics, against = _written(config, task, measured, before, out)
        out.finish(metrics)
    return metrics, against


def _measured(config: EvaluateConfig, task: Task, source: Source) -> Measured:
    search = evaluation.retrieval(task, source.queries, source.database)
    search, steps = methods.applied(search, config.expansion, config.neighbours)
    judged = list(evaluation.judge(task, source.queries, source.database, search))
    evaluation.require_rows(task, source.queries, source.database, judged)
    found = result.metrics(config, task, source, judged, steps)
    for line in (source.name, *result.lines(found)):
        log.info("%s", line)
    return Measured(source, judged, found)


def _written(
    config: EvaluateConfig, task: Task, measured: list[Measured], before: Baseline | None, out: Output
) -> tuple[dict[str, Any], Comparison | None]:
    """Writes all files of an evaluation; returns what is in metrics.json, and the comparison with the baseline."""
    first, metrics = measured[0], dict(measured[0].metrics)
    per_query = [evaluation.per_query(one.judged) for one in measured]
    tables.write(out.path(comparison.PER_QUERY), per_query[0])
    if task.protocol.top_k:
        reports = classification.reports(*result.classified(first.judged, task.protocol.top_k))
        if "top_k_accuracy" not in metrics:
            del reports["top_k"]
        files.write_json(out.path("classification_report.json"), reports)
    comparisons = []
    if len(measured) == 2:
        between = comparison.compared(measured[0].source.name, per_query[0], measured[1].source.name, per_query[1])
        tables.write(out.path("compared.parquet"), between.table)
        metrics["compared"] = [{"source": one.source.name, **one.metrics} for one in measured]
        metrics["difference"] = between.as_json()
        comparisons.append(between)
    against = before.compared(first.source.name, per_query[0], metrics) if before else None
    if against:
        metrics["against_baseline"] = against.as_json()
        comparisons.append(against)
    for compared in comparisons:
        log.info("%s", compared.line())
    files.write_json(out.path(comparison.METRICS), metrics)
    if config.report:
        report.write(config, task, measured, comparisons, out)
    return metrics, against
