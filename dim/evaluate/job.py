"""The evaluation: what is asked, measured on one set of descriptors or two, written, and held against a baseline.

What metrics.json and the terminal say of one evaluation.

The protocols on plain ranked lists, whoever made them.
"""

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dim.app import output
from dim.app.output import Output
from dim.errors import GateNotMet
from dim.evaluate import comparison, descriptor_sets, evaluation
from dim.evaluate.comparison import Baseline, Comparison
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.descriptor_sets import DescriptorSet
from dim.evaluate.evaluation import Judged
from dim.evaluate.protocols import NOT_LISTED, PROTOCOLS, REVISITED_LEVELS, Task, apply_metrics, means, task_of
from dim.io import files, seal, tables
from dim.report import evaluation as evaluation_report
from dim.report.evaluation import Measured
from dim.search import methods
from dim.search.methods import AppliedMethod

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluates as `config` says, writes `config.out` and returns the contents of metrics.json.

    Raises UserError before anything is written, and GateNotMet, once all is, where mAP fell too far below the baseline.
    """
    if config.baseline is None:
        return measure(config)[0]
    before = comparison.read(config.baseline, config.protocol)
    before.require_common(task_of(config))
    metrics, against = measure(config, before)
    if reason := before.unmet(metrics["map"], against, config.max_drop):
        raise GateNotMet(reason, metrics)
    return metrics


def measure(config: EvaluateConfig, before: Baseline | None = None) -> tuple[dict[str, Any], Comparison | None]:
    """`evaluate` without the gate: the contents of metrics.json, and how they compare with the baseline `before`."""
    methods.check(config.expansion, config.neighbours)
    with seal.unchanged(config.manifest, config.ground_truth, config.distractors):  # an extraction reads them again
        task = task_of(config)
        read = descriptor_sets.read(config, task)
    inputs = {"manifest": config.manifest, "ground_truth": config.ground_truth, "whitening": config.whitening}
    inputs |= {f"descriptors_{number}": source.folder for number, source in enumerate(read, start=1)}
    with output.opened(config.out, "evaluate", config, inputs, read[0].embedding.as_json()) as out:
        measured = [_measured(config, task, source) for source in read]
        metrics, against = _written(config, task, measured, before, out)
        out.finish(metrics)
    return metrics, against


def _measured(config: EvaluateConfig, task: Task, source: DescriptorSet) -> Measured:
    search = evaluation.retrieval(task, source.queries, source.database)
    search, steps = methods.apply(search, config.expansion, config.neighbours)
    judged = list(evaluation.judge(task, source.queries, source.database, search))
    evaluation.require_rows(task, source.queries, source.database, judged)
    found = metrics(config, task, source, judged, steps)
    for line in (source.name, *lines(found)):
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
        reports = evaluation.reports(*classified(first.judged, task.protocol.top_k))
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
        evaluation_report.write(config, task, measured, comparisons, out)
    return metrics, against


MEASURES: tuple[str, ...] = ("map", "map_at_r", "ns_score", "top_k_accuracy")


def metrics(
    config: EvaluateConfig, task: Task, source: DescriptorSet, judged: list[Judged], steps: list[AppliedMethod]
) -> dict[str, Any]:
    """The contents of metrics.json: measures, counts, and all that one must know to set them beside another's.

    What is 1 whatever the descriptors, as it takes in all of a list, is left out.
    """
    columns, n_listed = len(source.database), evaluation.shortest(task, source.queries, source.database)
    result = {"protocol": config.protocol} | evaluation.summary(task, judged, n_listed)
    if task.protocol.top_k and task.protocol.top_k < n_listed:
        result["top_k_accuracy"] = evaluation.top_k_accuracy(*classified(judged, task.protocol.top_k))
    return result | {
        "n_database": columns,
        "n_listed": n_listed,
        "n_distractors": columns - len(source.database.rows),
        "unreadable_queries": len(task.queries) - len(judged),
        "unreadable_database": len(task.database) - len(source.database.rows),
        "query_split": config.query_split or config.split,
        "database_split": config.database_split or config.split,
        "query_in_database": task.query_in_database,
        "embedding": source.embedding.as_json(),
        "whitening": source.whitenings,
        "expansion": [step.as_json() for step in steps],
    }


def classified(judged: list[Judged], top_k: int) -> tuple[list[str], list[list[str | None]]]:
    """The label of each query that has a positive, and those of its `top_k` nearest photos."""
    kept = [(query.label, query.nearest(top_k)) for query in judged if query.label and query.n_positives]
    return [label for label, _ in kept], [nearest for _, nearest in kept]


def lines(result: dict[str, Any]) -> list[str]:
    """What the terminal says of `result`, the contents of metrics.json."""
    embedding = result["embedding"]
    levels = {name: result[name] for name in PROTOCOLS[result["protocol"]].levels}
    scales = ", ".join(f"{scale:g}" for scale in embedding["scales"])
    steps = [
        f"{step['method']} with {step['neighbours']} neighbours, {step['seconds']:.1f} s"
        for step in result["expansion"]
    ]
    omitted = [name for name in PROTOCOLS[result["protocol"]].metrics if evaluation.takes_all(name, result["n_listed"])]
    whitenings = [f"whitened by {step['by']}, learned on {step['learned_on']}" for step in result["whitening"]]
    return [
        *(f"{name}: {_measures(values)}" for name, values in ({result["protocol"]: result} | levels).items()),
        f"{result['n_queries']} queries in {result['n_database']} photos; not readable: "
        f"{result['unreadable_queries']} queries, {result['unreadable_database']} of the database",
        f"{embedding['backbone']}-{embedding['pooling']}@{embedding['layer']}, {embedding['image_size']} px "
        f"{embedding['resize']}, scales {scales}, preprocessing {embedding['preprocessing']}, {embedding['precision']}",
        "; ".join(whitenings) or "not whitened",
        *(["after the search: " + "; ".join(steps)] if steps else []),
        *([f"not measured, as lists have {result['n_listed']} photos: {', '.join(omitted)}"] if omitted else []),
        f"query in the database: {'yes' if result['query_in_database'] else 'no'}",
    ]


def _measures(values: dict[str, Any]) -> str:
    found = {name: values[name] for name in MEASURES if name in values}
    for name in ("recall", "mp"):
        found |= {f"{name}@{depth}": value for depth, value in values.get(name, {}).items()}
    return ", ".join(f"{name} {'none' if value is None else format(value, '.4f')}" for name, value in found.items())


def revisited(ranks: Iterable[Sequence[int]], gnd: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, dict[str, Any]]:
    """ROxford5k and RParis6k (Radenović et al. 1803.11285).

    `ranks` holds a list for each query, database indexes best first; `gnd` for each its indexes under easy, hard and
    junk. Returns for easy, medium and hard the `map`, the `aps` (None for a query without a positive) and `mp`
    ({"1": …, "5": …, "10": …}).
    """
    positions = [_positions(listed, graded) for listed, graded in zip(ranks, gnd, strict=True)]
    known = PROTOCOLS["revisited"].metrics
    result = {}
    for name, level in REVISITED_LEVELS.items():
        queries = [apply_metrics(known, *level.ranks(query)) for query in positions]
        result[name] = means(known, queries) | {"aps": [query["map"] for query in queries]}
    return result


def oxford(
    listed: Sequence[Hashable], good: Iterable[Hashable], ok: Iterable[Hashable], junk: Iterable[Hashable]
) -> float | None:
    """The AP of one query of Oxford5k or Paris6k, as the benchmark's `compute_ap` prints it (Philbin et al. 2007).

    `listed` are images best first; good and ok are positive, junk is taken out; an image named twice counts once.
    """
    graded = {"good": list({*good, *ok}), "junk": list(set(junk))}
    return apply_metrics(PROTOCOLS["oxford"].metrics, *PROTOCOLS["oxford"].level.ranks(_positions(listed, graded)))[
        "map"
    ]


def _positions(listed: Sequence[Any], graded: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    position = {image: place for place, image in enumerate(listed)}
    return {
        grade: np.array([position.get(image, NOT_LISTED) for image in images], np.int64)
        for grade, images in graded.items()
    }
