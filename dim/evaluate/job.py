"""The evaluation: what is asked, measured on one set of descriptors or two, written, and held against a baseline."""

import logging
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dim import files, output
from dim.errors import GateNotMet, UserError
from dim.evaluate import classification, evaluation, result, sources
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.evaluation import Judged
from dim.evaluate.task import task_of
from dim.search import methods

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluates as `config` says, writes `config.out` and returns the contents of metrics.json.

    Raises UserError before anything is written, and GateNotMet, once all is, where mAP fell too far below the baseline.
    """
    methods.check(config.expansion, config.neighbours)
    task = task_of(config)
    baseline = _baseline(config)
    measured = sources.read(config, task)
    inputs = {"manifest": config.manifest, "ground_truth": config.ground_truth, "whitening": config.whitening}
    inputs |= {f"descriptors_{number}": source.folder for number, source in enumerate(measured, start=1)}
    with output.opened(config.out, "evaluate", config, inputs, measured[0].embedding.as_json()) as out:
        judged, each = [], []
        for source in measured:
            search = evaluation.retrieval(task, source.queries, source.database)
            search, steps = methods.applied(search, config.expansion, config.neighbours)
            judged.append(list(evaluation.judge(task, source.queries, source.database, search)))
            each.append(result.metrics(config, task, source, judged[-1], steps))
        for source, found in zip(measured, each, strict=True):
            for line in (source.name, *result.lines(found)):
                log.info("%s", line)
        files.write_table(out.path("per_query.parquet"), evaluation.per_query(judged[0]))
        if task.protocol.top_k:
            report = classification.reports(*result.classified(judged[0]))
            files.write_json(out.path("classification_report.json"), report)
        metrics = dict(each[0])
        if len(measured) == 2:
            files.write_table(out.path("compared.parquet"), _differences(*judged))
            metrics["compared"] = [{"source": s.name, **found} for s, found in zip(measured, each, strict=True)]
        files.write_json(out.path("metrics.json"), metrics)
        out.finish(metrics)
    if baseline is not None and (drop := baseline - metrics["map"]) > config.max_drop:
        raise GateNotMet(
            f"mAP {metrics['map']:.4f} is {drop:.4f} below the {baseline:.4f} of {config.baseline!r}, "
            f"which is more than --max-drop {config.max_drop}",
            metrics,
        )
    return metrics


def _baseline(config: EvaluateConfig) -> float | None:
    """The baseline's mAP. Raises UserError where it has none, or is of another protocol."""
    if config.baseline is None:
        if config.max_drop:
            raise UserError("--max-drop needs --baseline metrics.json")
        return None
    found = files.read_json(config.baseline)
    if not isinstance(found, dict) or not isinstance(found.get("map"), float):
        raise UserError(f"{config.baseline!r} holds no map; name the metrics.json of an evaluation")
    if found.get("protocol") != config.protocol:
        raise UserError(f"{config.baseline!r} is of protocol {found.get('protocol')!r}, not {config.protocol!r}")
    return float(found["map"])


def _differences(one: list[Judged], other: list[Judged]) -> pa.Table:
    """The queries that both could read: the AP of each, and the second's less the first's, largest gain first."""
    tables = [evaluation.per_query(judged).select(["query_id", "label", "ap"]) for judged in (one, other)]
    joined = tables[0].join(tables[1].drop_columns(["label"]), "query_id", join_type="inner", right_suffix="_other")
    joined = joined.append_column("difference", pc.subtract(joined["ap_other"], joined["ap"]))
    return joined.sort_by([("difference", "descending"), ("query_id", "ascending")])
