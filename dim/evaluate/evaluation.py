"""The results of an evaluation's queries, and the figures made of them.

`summary` and `per_query` turn the results of `dim.evaluate.judging` into metrics.json and per_query.parquet. The
functions at the end treat a search as a classifier, which gives a query the label of the nearest photo. They compute
the accuracy, the classification report and the confused labels.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.metrics import classification_report

from dim.data.decode import Box
from dim.evaluate.metrics import GROUP, Metric
from dim.evaluate.protocols import Verdict, means, nested
from dim.evaluate.task import RetrievalTask
from dim.extract.descriptors import Descriptors
from dim.io.tables import require_each_once

NO_LABEL = "(no label)"


@dataclass(frozen=True, slots=True)
class Hit:
    """One of the first photos of a query's list: its database column, label and score, and the verdict on it.

    `box` is where a re-ranking found the query, in pixels.
    """

    column: int
    label: str | None
    score: float
    verdict: Verdict
    box: Box | None = None


@dataclass(frozen=True)
class QueryResult:
    """The result of one query."""

    query_id: str
    label: str | None
    values: dict[str, float | None]  # value of each metric; None if the query has no positive
    levels: dict[str, dict[str, float | None]]  # at each level of the protocol, the value of each metric
    n_positives: int  # number of the query's positives, listed or not
    ranks: np.ndarray  # int (P,): ascending 0-based ranks of the listed positives, not counting junk
    hits: list[Hit]  # the first photos of the list, junk included

    @property
    def ap(self) -> float | None:
        """The average precision, None if the query has no positive."""
        return self.values["map"]

    @property
    def first_rank(self) -> int | None:
        """The 1-based rank of the first positive, None if the list has no positive."""
        return int(self.ranks[0]) + 1 if len(self.ranks) else None


def require_queries(task: RetrievalTask, queries: Descriptors, results: list[QueryResult]) -> None:
    """Raises RuntimeError if any query that could be decoded was not evaluated exactly once."""
    asked = task.queries.table["image_id"]
    unreadable = np.delete(np.arange(len(asked)), queries.rows)
    given = [*(query.query_id for query in results), *asked.take(unreadable).to_pylist()]
    require_each_once(asked.to_pylist(), given, repr(task.queries.uri))


def informative_metrics(task: RetrievalTask, n_listed: int) -> dict[str, Metric]:
    """The metrics of the protocol that a descriptor can change, with `n_listed` photos in each list (`covers_list`)."""
    return {name: metric for name, metric in task.protocol.metrics.items() if not covers_list(name, n_listed)}


def covers_list(metric: str, n_listed: int) -> bool:
    """Whether `metric` counts every photo of a list of `n_listed` photos. If so, descriptors can't change its value."""
    key, _, depth = metric.partition("@")
    if key == "ns_score":
        return n_listed <= GROUP
    return key == "recall" and int(depth) >= n_listed


def summary(task: RetrievalTask, results: list[QueryResult], n_listed: int) -> dict[str, Any]:
    """The figures of metrics.json, overall and at each level of the protocol: means over queries with a positive."""
    names = informative_metrics(task, n_listed)
    levels = {name: _means(names, [query.levels[name] for query in results]) for name in task.protocol.levels}
    return _means(names, [query.values for query in results]) | nested(levels)


def _means(names: Iterable[str], queries: list[dict[str, float | None]]) -> dict[str, Any]:
    return means(names, queries) | {"n_queries": sum(query["map"] is not None for query in queries)}


def per_query(results: list[QueryResult]) -> pa.Table:
    """The table of per_query.parquet, one row per query; `ap` is null for a query without a positive."""
    columns = {
        "query_id": pa.string(), "label": pa.string(), "ap": pa.float64(),
        "n_positives": pa.int64(), "first_rank": pa.int64(),
    }  # fmt: skip
    return pa.table({name: pa.array([getattr(query, name) for query in results], columns[name]) for name in columns})


def top_k_accuracy(labels: Sequence[str], nearest: Sequence[Sequence[str | None]]) -> float:
    """The share of queries with a photo of the same label among their k `nearest`. dim's predecessor called it mAP."""
    return sum(label in found for label, found in zip(labels, nearest, strict=True)) / len(labels)


def classification_reports(labels: Sequence[str], nearest: Sequence[Sequence[str | None]]) -> dict[str, Any]:
    """Two classification reports of scikit-learn: precision, recall and F1 of each label.

    `labels` has the label of each query, and `nearest` has a list of labels per query, those of the nearest photos. The
    report `top_1` takes the label of the nearest photo as the prediction. The report `top_k` takes the
    query's own label if any of the nearest photos has it, and otherwise also the label of the nearest photo. Its
    figures are therefore too high. dim's predecessor reported `top_k`.
    """
    first = [next(iter(found), None) or NO_LABEL for found in nearest]
    any_of = [label if label in found else top for label, found, top in zip(labels, nearest, first, strict=True)]
    return {"top_k": _report(labels, any_of), "top_1": _report(labels, first)}


def _report(labels: Sequence[str], predicted: Sequence[str]) -> dict[str, Any]:
    return dict(classification_report(labels, predicted, output_dict=True, zero_division=0))


@dataclass(frozen=True)
class Confusion:
    """The queries of `label` whose nearest photo is wrong and has the label `taken_for`."""

    label: str
    taken_for: str
    queries: list[QueryResult]
    of: int  # number of queries of `label` that have a positive


def confusions(results: Sequence[QueryResult]) -> list[Confusion]:
    """All confused pairs of labels, the most frequent first, ties by label. Junk photos are skipped."""
    pairs: dict[tuple[str, str], list[QueryResult]] = {}
    counts: Counter[str] = Counter()
    for query in results:
        if query.label is None or not query.n_positives:
            continue
        counts[query.label] += 1
        nearest = next((hit for hit in query.hits if hit.verdict != "junk"), None)
        if nearest and nearest.verdict == "wrong" and nearest.label is not None:
            pairs.setdefault((query.label, nearest.label), []).append(query)
    found = [Confusion(*pair, queries, counts[pair[0]]) for pair, queries in pairs.items()]
    return sorted(found, key=lambda pair: (-len(pair.queries), pair.label, pair.taken_for))
