"""One evaluation: the queries' descriptors against the database's, under a task's protocol.

The retrieval read as classification: the seed's accuracy and report, and the true report beside it.

Which labels are taken for which: the nearest photo of a query has another label than the query.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.metrics import classification_report

from dim.app.progress import Progress
from dim.evaluate.descriptor_sets import EvaluatedDatabase
from dim.evaluate.metrics import GROUP, Metric
from dim.evaluate.protocols import NOT_LISTED, Task, Verdict, apply_metrics, means
from dim.extract.descriptors import Descriptors
from dim.io.tables import require_each_once
from dim.search import exact
from dim.search.database import Exact, Retrieval

LISTED = 10  # photos of each list that are kept, for people to look at


@dataclass(frozen=True, slots=True)
class Hit:
    """A photo that heads a query's list: its column in the database, its label, and what the protocol says of it."""

    column: int
    label: str | None
    score: float
    verdict: Verdict


@dataclass(frozen=True)
class Judged:
    """One query's result. `ranks` are those of its positives, 0-based, ascending, junk left out; `first_rank`, from 1,
    is the first of them; `hits` head its list, junk and all.
    """

    query_id: str
    label: str | None
    values: dict[str, float | None]
    levels: dict[str, dict[str, float | None]]
    n_positives: int
    ranks: np.ndarray
    hits: list[Hit]

    @property
    def ap(self) -> float | None:
        """The query's average precision; None where it has no positive."""
        return self.values["map"]

    @property
    def first_rank(self) -> int | None:
        """The rank of the first positive that is listed."""
        return int(self.ranks[0]) + 1 if len(self.ranks) else None

    def nearest(self, count: int) -> list[str | None]:
        """The labels of the first `count` photos of the list."""
        return [hit.label for hit in self.hits[:count]]


def retrieval(task: Task, queries: Descriptors, database: EvaluatedDatabase) -> Retrieval:
    """The exact search of `queries` in `database`; what the protocol says leaves their lists."""
    searched = Exact(database.parts, exact.tie_order_of(database.ids(task.database)))
    return Retrieval(queries.vectors, searched, own=_leaving(task, queries, database))


def _columns(task: Task, database: EvaluatedDatabase) -> np.ndarray:
    """The column of each of the task's rows, NOT_LISTED where it could not be decoded."""
    column = np.full(len(task.database), NOT_LISTED)
    column[database.rows] = np.arange(len(database.rows))
    return column


def _leaving(task: Task, queries: Descriptors, database: EvaluatedDatabase) -> np.ndarray:
    """The column that leaves each query's list, NOT_LISTED where none does."""
    column = _columns(task, database)
    leaving = (task.leaving(query) for query in queries.rows)
    return np.array([NOT_LISTED if row is None else column[row] for row in leaving], np.int64)


def judge(task: Task, queries: Descriptors, database: EvaluatedDatabase, search: Retrieval) -> Iterator[Judged]:
    """Yields each query's result by the scores of `search`, in memory for a few queries at a time."""
    column = _columns(task, database)
    labels = np.full(len(database), None, dtype=object)
    labels[: len(database.rows)] = task.database.labels[database.rows]
    place = search.database.tie_order
    known = applicable(task, shortest(task, queries, database))
    progress = Progress("evaluating", len(queries.rows), "queries")
    for query, row in zip(queries.rows, search.scores(), strict=True):
        progress.add()
        relevant = {grade: column[rows] for grade, rows in task.relevant(query).items()}
        positions = _positions(row, relevant, place)
        ranks, n_pos = task.protocol.level.ranks(positions)
        yield Judged(
            query_id=task.queries.image_ids[query],
            label=task.queries.labels[query],
            values=apply_metrics(known, ranks, n_pos),
            levels={
                name: apply_metrics(known, *level.ranks(positions)) for name, level in task.protocol.levels.items()
            },
            n_positives=n_pos,
            ranks=ranks,
            hits=_hits(row, exact.best(row, LISTED, place), labels, task.protocol.level.verdicts(relevant)),
        )


def _hits(row: np.ndarray, columns: np.ndarray, labels: np.ndarray, verdicts: dict[int, Verdict]) -> list[Hit]:
    return [
        Hit(column, labels[column], float(row[column]), verdicts.get(column, "wrong")) for column in columns.tolist()
    ]


def require_rows(task: Task, queries: Descriptors, database: EvaluatedDatabase, judged: list[Judged]) -> None:
    """Raises RuntimeError unless each query and each row of the database is there once, or could not be decoded."""
    for rows, decoded, given in (
        (task.queries, queries.rows, [query.query_id for query in judged]),
        (task.database, database.rows, task.database.image_ids[database.rows]),
    ):
        require_each_once(rows.image_ids, [*given, *np.delete(rows.image_ids, decoded)], repr(rows.uri))


def _positions(row: np.ndarray, columns: dict[str, np.ndarray], place: np.ndarray) -> dict[str, np.ndarray]:
    asked = np.concatenate([np.zeros(0, np.int64), *columns.values()])
    positions = np.full(len(asked), NOT_LISTED)
    positions[asked != NOT_LISTED] = exact.ranks(row, asked[asked != NOT_LISTED], place)
    ends = np.cumsum([len(found) for found in columns.values()])
    return dict(zip(columns, np.split(positions, ends[:-1]), strict=True))


def shortest(task: Task, queries: Descriptors, database: EvaluatedDatabase) -> int:
    """How many photos the shortest list has; with junk, where the protocol knows any."""
    return len(database) - bool((_leaving(task, queries, database) != NOT_LISTED).any())


def applicable(task: Task, n_listed: int) -> dict[str, Metric]:
    """The protocol's metrics without those that need not be measured, as they take in a whole list of `n_listed`."""
    return {name: metric for name, metric in task.protocol.metrics.items() if not takes_all(name, n_listed)}


def takes_all(name: str, n_listed: int) -> bool:
    """Whether the metric `name` takes in a whole list of `n_listed`, so that it says nothing of the descriptors."""
    found, _, depth = name.partition("@")
    if found == "ns_score":
        return n_listed <= GROUP
    return found == "recall" and int(depth) >= n_listed


def summary(task: Task, judged: list[Judged], n_listed: int) -> dict[str, Any]:
    """The measures of metrics.json: means over the queries that have a positive, at each level of the protocol."""
    known = applicable(task, n_listed)
    levels = {name: _means(known, [query.levels[name] for query in judged]) for name in task.protocol.levels}
    return _means(known, [query.values for query in judged]) | levels


def _means(known: dict[str, Metric], queries: list[dict[str, float | None]]) -> dict[str, Any]:
    return means(known, queries) | {"n_queries": sum(query["map"] is not None for query in queries)}


def per_query(judged: list[Judged]) -> pa.Table:
    """The table of per_query.parquet, a row for each query; `ap` is null where it has no positive."""
    return pa.table(
        {
            "query_id": pa.array([query.query_id for query in judged], pa.string()),
            "label": pa.array([query.label for query in judged], pa.string()),
            "ap": pa.array([query.ap for query in judged], pa.float64()),
            "n_positives": pa.array([query.n_positives for query in judged], pa.int64()),
            "first_rank": pa.array([query.first_rank for query in judged], pa.int64()),
        }
    )


NO_LABEL = "(no label)"


def top_k_accuracy(labels: Sequence[str], nearest: Sequence[Sequence[str | None]]) -> float:
    """The share of queries whose label is among those of their nearest photos (what the seed called mAP)."""
    return sum(label in found for label, found in zip(labels, nearest, strict=True)) / len(labels)


def reports(labels: Sequence[str], nearest: Sequence[Sequence[str | None]]) -> dict[str, Any]:
    """Precision, recall and F1 of each label, for queries with `labels` and the labels of their nearest photos.

    In `top_k`, the seed's, a query counts as its own label if that is among the nearest, else as the nearest's; it
    flatters. In `top_1` it counts as the nearest's.
    """
    first = [next(iter(found), None) or NO_LABEL for found in nearest]
    any_of = [label if label in found else top for label, found, top in zip(labels, nearest, first, strict=True)]
    return {"top_k": _report(labels, any_of), "top_1": _report(labels, first)}


def _report(labels: Sequence[str], predicted: Sequence[str]) -> dict[str, Any]:
    return dict(classification_report(labels, predicted, output_dict=True, zero_division=0))


@dataclass(frozen=True)
class Confusion:
    """The queries of `label` whose nearest photo is wrong and has the label `taken_for`; `of` is how many it has."""

    label: str
    taken_for: str
    queries: list[Judged]
    of: int


def confusions(judged: Sequence[Judged]) -> list[Confusion]:
    """All pairs of labels that are confused, most often first, ties by label. Junk is left out of the lists."""
    pairs: dict[tuple[str, str], list[Judged]] = {}
    counts: dict[str, int] = {}
    for query in judged:
        if query.label is None or not query.n_positives:
            continue
        counts[query.label] = counts.get(query.label, 0) + 1
        nearest = next((hit for hit in query.hits if hit.verdict != "junk"), None)
        if nearest and nearest.verdict == "wrong" and nearest.label is not None:
            pairs.setdefault((query.label, nearest.label), []).append(query)
    found = [Confusion(*pair, queries, counts[pair[0]]) for pair, queries in pairs.items()]
    return sorted(found, key=lambda pair: (-len(pair.queries), pair.label, pair.taken_for))
