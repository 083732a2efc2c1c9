"""The evaluation job: reads the task and the descriptors, measures, writes the results, and checks the gate.

Start at `evaluate`. The functions at the end, `revisited` and `oxford`, score ranked lists from any source.
"""

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dim.app import cluster, output_folder
from dim.app.output_folder import Output
from dim.data import manifest
from dim.errors import GateNotMet
from dim.evaluate import comparison, descriptor_sets, evaluation, in_words, judging, protocols, ranked_lists
from dim.evaluate.comparison import Baseline, Comparison
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.descriptor_sets import DescriptorSet
from dim.evaluate.evaluation import QueryResult
from dim.evaluate.protocols import NOT_LISTED, PROTOCOLS
from dim.evaluate.task import RetrievalTask, read_task
from dim.io import files, seal, tables
from dim.localise import sources
from dim.localise.config import parsed
from dim.localise.rerank import Reranker
from dim.report import evaluation as evaluation_report
from dim.report.evaluation import Measured
from dim.search import expansion_methods
from dim.search.expansion_methods import AppliedMethod

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Runs an evaluation, writes its results to `config.out`, and returns the contents of metrics.json.

    Raises:
        UserError: the settings or the inputs are wrong. No results have been written.
        GateNotMet: mAP fell too far below the baseline's. All results have been written.
    """
    if config.baseline is None:
        return measure(config)[0]
    baseline = comparison.read_baseline(config.baseline, config.protocol)
    baseline.require_common_queries(read_task(config))
    metrics, against = measure(config, baseline)
    if reason := baseline.gate_failure(metrics["map"], against, config.max_drop):
        raise GateNotMet(reason, metrics)
    return metrics


def measure(config: EvaluateConfig, baseline: Baseline | None = None) -> tuple[dict[str, Any], Comparison | None]:
    """Evaluates without a gate. Returns the contents of metrics.json and the comparison with `baseline`, if any."""
    if config.ranked:
        return _measure_lists(config, baseline)
    expansion_methods.check(config.expansion, config.neighbours, config.rerank)
    # If --model is given, the extraction reads the manifests again. Both readings must give the same rows.
    with seal.unchanged(config.manifest, config.ground_truth, config.distractors):
        task = read_task(config)
        sets = descriptor_sets.read(config, task)
    rerankers = [_reranker(config, task, found) if config.rerank else None for found in sets]
    inputs = {name: getattr(config, name) for name in ("manifest", "ground_truth", "whitening", "distractors")}
    for number, found in enumerate(sets, start=1):
        inputs |= {f"descriptors_{number}": found.folder, f"distractor_descriptors_{number}": found.distractor_folder}
    with (
        cluster.joined(),
        output_folder.opened(config.out, "evaluate", config, inputs, sets[0].embedding.as_json()) as out,
    ):
        measured = [_measure_set(config, task, *one) for one in zip(sets, rerankers, strict=True)]
        metrics, against = _write(config, task, measured, baseline, out)
        out.finish(metrics)
    return metrics, against


def _measure_lists(config: EvaluateConfig, baseline: Baseline | None) -> tuple[dict[str, Any], Comparison | None]:
    """Does what `measure` does for the ranked lists of --ranked. There are no pages, as hits and scores are unknown."""
    with seal.unchanged(config.manifest, config.ground_truth, config.ranked):
        task = read_task(config)
        lists = ranked_lists.read(config, task)
        task.require_positive(lists.queries)
    inputs = {"manifest": config.manifest, "ground_truth": config.ground_truth, "ranked": config.ranked}
    with output_folder.opened(config.out, "evaluate", config, inputs, lists.embedding) as out:
        results = list(ranked_lists.judge(task, lists))
        metrics = ranked_lists.metrics_of(config, task, lists, results)
        for line in in_words.figures(metrics):
            log.info("%s", line)
        per_query = evaluation.per_query(results)
        tables.write(out.path(comparison.PER_QUERY), per_query)
        against = baseline.compare(str(config.ranked), per_query, metrics) if baseline else None
        if against:
            metrics["against_baseline"] = against.as_json()
            log.info("%s", against.line())
        files.write_json(out.path(comparison.METRICS), metrics)
        out.finish(metrics)
    return metrics, against


def _measure_set(
    config: EvaluateConfig, task: RetrievalTask, source: DescriptorSet, reranker: Reranker | None
) -> Measured:
    search = judging.exact_search(task, source.queries, source.database)
    search, steps = expansion_methods.apply(search, config.expansion, config.neighbours)
    share = config.budget.share // 2
    judged = list(judging.judge(task, source.queries, source.database, search, share=share, reranker=reranker))
    results = [judged[place] for place in np.argsort(source.queries.rows)]
    evaluation.require_queries(task, source.queries, results)
    metrics = _metrics(config, task, source, results, steps)
    for line in (source.name, *in_words.settings_and_figures(source, metrics)):
        log.info("%s", line)
    return Measured(source, results, metrics)


def _reranker(config: EvaluateConfig, task: RetrievalTask, source: DescriptorSet) -> Reranker:
    recipe = sources.recipe_of(source.folder, source.embedding, config, whitening=config.whitening)
    searched = [(task.database, source.database.rows)]
    if config.distractors and source.database.distractors:
        searched.append((manifest.read(config.distractors), descriptor_sets.rows_of(source.database.distractors)))
    queries, photos = sources.of_rows((task.queries, source.queries.rows)), sources.of_rows(*searched)
    return Reranker(parsed(str(config.rerank)), recipe, queries, photos, config)


def _metrics(
    config: EvaluateConfig, task: RetrievalTask, source: DescriptorSet, results: list[QueryResult],
    steps: list[AppliedMethod],
) -> dict[str, Any]:  # fmt: skip
    """The contents of metrics.json: the figures, and the facts needed to compare them with figures of another run."""
    columns, n_listed = len(source.database), judging.shortest_list(task, source.queries, source.database)
    metrics = {"protocol": config.protocol} | evaluation.summary(task, results, n_listed)
    if task.protocol.top_k and task.protocol.top_k < n_listed:
        metrics["top_k_accuracy"] = evaluation.top_k_accuracy(*_classified(results, task.protocol.top_k))
    return metrics | {
        "n_database": columns,
        "n_listed": n_listed,
        "n_distractors": columns - len(source.database.rows),
        "unreadable_queries": len(task.queries) - len(results),
        "unreadable_database": len(task.database) - len(source.database.rows),
        "query_split": config.query_split or config.split,
        "database_split": config.database_split or config.split,
        "query_in_database": task.query_in_database,
        "embedding": source.embedding.as_json(),
        "whitening": source.whitenings,
        "expansion": [step.as_json() for step in steps],
        "rerank": config.rerank,
    }


def _classified(results: list[QueryResult], top_k: int) -> tuple[list[str], list[list[str | None]]]:
    """The label of each query that has a positive, and the labels of its `top_k` nearest photos."""
    kept = [(query.label, query.hits[:top_k]) for query in results if query.label and query.n_positives]
    return [label for label, _ in kept], [[hit.label for hit in hits] for _, hits in kept]


def _write(
    config: EvaluateConfig, task: RetrievalTask, measured: list[Measured], baseline: Baseline | None, out: Output
) -> tuple[dict[str, Any], Comparison | None]:
    """Writes all files of the evaluation. Returns the contents of metrics.json and the comparison with the baseline."""
    first, metrics = measured[0], dict(measured[0].metrics)
    per_query = [evaluation.per_query(one.results) for one in measured]
    tables.write(out.path(comparison.PER_QUERY), per_query[0])
    if task.protocol.top_k:
        reports = evaluation.classification_reports(*_classified(first.results, task.protocol.top_k))
        if "top_k_accuracy" not in metrics:
            del reports["top_k"]
        files.write_json(out.path("classification_report.json"), reports)
    comparisons = []
    if len(measured) == 2:
        between = comparison.compare(first.source.name, per_query[0], measured[1].source.name, per_query[1])
        tables.write(out.path("compared.parquet"), between.table)
        metrics["compared"] = [{"source": one.source.name, **one.metrics} for one in measured]
        metrics["difference"] = between.as_json()
        comparisons.append(between)
    against = baseline.compare(first.source.name, per_query[0], metrics) if baseline else None
    if against:
        metrics["against_baseline"] = against.as_json()
        comparisons.append(against)
    for compared in comparisons:
        log.info("%s", compared.line())
    files.write_json(out.path(comparison.METRICS), metrics)
    if config.report:
        evaluation_report.write(config, task, measured, comparisons, out)
    return metrics, against


def revisited(ranks: Iterable[Sequence[int]], gnd: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, dict[str, Any]]:
    """Scores ranked lists under the protocol of ROxford5k and RParis6k (Radenović et al., arXiv:1803.11285).

    Args:
        ranks: one list per query, of positions in the database, best first.
        gnd: one dict per query. Under "easy", "hard" and "junk" it has positions in the database, as the benchmark's
            `gnd` file does.

    Returns:
        One dict under each of "easy", "medium" and "hard". It has `map`, `mp` as {"1": …, "5": …, "10": …}, `recall`
        as {"1": …, "5": …, "10": …, "20": …}, and `aps`, one value per query, None for a query without a positive.
    """
    positions = [_positions(listed, graded) for listed, graded in zip(ranks, gnd, strict=True)]
    metrics = PROTOCOLS["revisited"].metrics
    result = {}
    for name, level in protocols.REVISITED_LEVELS.items():
        queries = [protocols.apply_metrics(metrics, *level.ranks(query)) for query in positions]
        result[name] = protocols.means(metrics, queries) | {"aps": [query["map"] for query in queries]}
    return result


def oxford(
    listed: Sequence[Hashable], good: Iterable[Hashable], ok: Iterable[Hashable], junk: Iterable[Hashable]
) -> float | None:
    """The AP of one query of Oxford5k or Paris6k, as the benchmark's `compute_ap` prints it (Philbin et al., 2007).

    Args:
        listed: the images of the query's list, best first.
        good: positive images; an image named twice counts once.
        ok: further positive images.
        junk: images that are removed from the list.
    """
    graded = {"good": list({*good, *ok}), "junk": list(set(junk))}
    ranks, n_pos = PROTOCOLS["oxford"].level.ranks(_positions(listed, graded))
    return PROTOCOLS["oxford"].metrics["map"](ranks, n_pos)


def _positions(listed: Sequence[Any], graded: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    """The positions of each grade's images in the list, NOT_LISTED for an image that the list lacks."""
    position = {image: place for place, image in enumerate(listed)}
    return {
        grade: np.array([position.get(image, NOT_LISTED) for image in images], np.int64)
        for grade, images in graded.items()
    }
