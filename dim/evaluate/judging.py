"""Judges the list of each query: the ranks of its positives, the metrics made of them, and the first photos.

`exact_search` sets up the search of the queries in the database, and `judge` judges its lists, some queries at a time.
The ranks come from counts (`dim.search.ranks`) or, if a re-ranking replaces the scores, from all scores of a query.

A *row* of the database is a row of the database's manifest. The search has one *column* per searched photo: first the
database rows whose photo could be decoded, then the distractors.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dim.app.progress import Progress
from dim.evaluate.descriptor_sets import EvaluatedDatabase
from dim.evaluate.evaluation import Hit, QueryResult, informative_metrics
from dim.evaluate.metrics import Metric
from dim.evaluate.protocols import NOT_LISTED, apply_metrics
from dim.evaluate.task import Graded, RetrievalTask
from dim.extract.descriptors import Descriptors
from dim.localise.rerank import Reranked, Reranker, box_of
from dim.search import exact
from dim.search.database import Exact
from dim.search.ranks import Pairs, ranks
from dim.search.retrieval import Retrieval

TOP = 10  # photos at the top of each query's list that are kept as hits
_PAIR = 64  # bytes that a graded photo takes in the arrays of a chunk of queries, about


class Head(NamedTuple):
    """The columns of the first photos of a list, their scores and, after a re-ranking, their boxes (n, 4)."""

    rows: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray | None = None


def exact_search(task: RetrievalTask, queries: Descriptors, database: EvaluatedDatabase) -> Retrieval:
    """Sets up the exact search of `queries` in `database`. Lists lack the photos that the protocol excludes."""
    searched = Exact(database.parts, exact.tie_order_of(database.ids))
    return Retrieval(queries.vectors, searched, own=_excluded_columns(task, queries, database))


def judge(
    task: RetrievalTask,
    queries: Descriptors,
    database: EvaluatedDatabase,
    search: Retrieval,
    *,
    share: int,
    reranker: Reranker | None = None,
) -> Iterator[QueryResult]:
    """Judges each query's list under the task's protocol. The results are in the order of `queries`.

    `search` is the search of `queries` in `database`, with or without expansion. Then `reranker`, if there is one,
    ranks the first photos again. The queries go in chunks, whose vectors and ranks take `share` bytes at most, or have
    one query.
    """
    count = max(TOP, reranker.how.first) if reranker else TOP
    column_of = _columns(task, database)
    chosen = informative_metrics(task, shortest_list(task, queries, database))
    for chunk in _chunks(task, queries, share, reranker.query_bytes if reranker else 0):
        graded = task.graded(queries.rows[chunk])
        own = None if search.own is None else search.own[chunk]
        part = replace(search, queries=np.asarray(search.queries[chunk]), own=own)
        columns = column_of[graded.rows]
        find = _from_scores if search.rescore else _from_counts
        positions, heads = find(part, graded.queries, columns, count)
        if reranker:
            reranked = reranker(np.arange(chunk.start, chunk.stop), [(head.rows, head.scores) for head in heads])
            _move(positions, graded.queries, columns, heads, reranked)
            heads = [Head(found.rows[:TOP], found.scores[:TOP], found.boxes[:TOP]) for found in reranked]
        asked = task.queries.table.take(queries.rows[chunk])
        ids, labels = (asked[name].to_pylist() for name in ("image_id", "label"))
        hits = _hits(task, database, graded, columns, heads)
        lists = zip(graded.by_query(positions, len(heads)), hits, strict=True)
        for query, (found, near) in enumerate(lists):
            yield result_of(task, chosen, (ids[query], labels[query]), found, near)


def result_of(
    task: RetrievalTask,
    chosen: dict[str, Metric],
    query: tuple[str, str | None],
    positions: dict[str, np.ndarray],
    hits: list[Hit],
) -> QueryResult:
    """The result of a `query`, its id and label, given the 0-based `positions` of the images of each grade."""
    ranked, n_pos = task.protocol.level.ranks(positions)
    return QueryResult(
        query_id=query[0],
        label=query[1],
        values=apply_metrics(chosen, ranked, n_pos),
        levels={name: apply_metrics(chosen, *level.ranks(positions)) for name, level in task.protocol.levels.items()},
        n_positives=n_pos,
        ranks=ranked,
        hits=hits,
    )


def _columns(task: RetrievalTask, database: EvaluatedDatabase) -> np.ndarray:
    """The column of each database row of `task`, NOT_LISTED for a row that could not be decoded."""
    column_of = np.full(len(task.database), NOT_LISTED)
    column_of[database.rows] = np.arange(len(database.rows))
    return column_of


def _excluded_columns(task: RetrievalTask, queries: Descriptors, database: EvaluatedDatabase) -> np.ndarray:
    """The column that the protocol excludes from each query's list, NOT_LISTED if it excludes none."""
    rows = task.excluded[queries.rows]
    found: np.ndarray = np.where(rows == NOT_LISTED, NOT_LISTED, _columns(task, database)[rows])
    return found


def shortest_list(task: RetrievalTask, queries: Descriptors, database: EvaluatedDatabase) -> int:
    """The number of photos in the shortest list, junk included."""
    return len(database) - bool((_excluded_columns(task, queries, database) != NOT_LISTED).any())


def _chunks(task: RetrievalTask, queries: Descriptors, share: int, more: int) -> Iterator[slice]:
    """Yields consecutive queries that take `share` bytes together; each takes `more` than its vector and its ranks."""
    vector = 2 * queries.vectors.itemsize * queries.vectors.shape[1] + more
    taken = np.cumsum(vector + _PAIR * task.graded_counts[queries.rows]) // share
    starts = np.flatnonzero(np.diff(taken, prepend=-1))
    yield from map(slice, starts.tolist(), [*starts[1:].tolist(), len(taken)])


def _move(
    positions: np.ndarray, of: np.ndarray, columns: np.ndarray, heads: list[Head], reranked: list[Reranked]
) -> None:
    """Moves each of `columns` that is in the head of its list to where the re-ranked list has it."""
    bounds = np.searchsorted(of, np.arange(len(heads) + 1)).tolist()
    for (first, last), before, after in zip(pairwise(bounds), heads, reranked, strict=True):
        listed = columns[first:last] != NOT_LISTED
        ahead = first + np.flatnonzero((positions[first:last] < len(before.rows)) & listed)
        order = np.argsort(after.rows)
        positions[ahead] = order[np.searchsorted(after.rows, columns[ahead], sorter=order)]


def _from_counts(search: Retrieval, of: np.ndarray, columns: np.ndarray, count: int) -> tuple[np.ndarray, list[Head]]:
    """The position of each of `columns` in the list of the query `of`, int64 (P,), and the first `count` of each list.

    `of` (P,) is ascending. A column NOT_LISTED has the position NOT_LISTED.
    """
    database = search.database
    if not isinstance(database, Exact):
        raise TypeError("only the rows of an exact search have ranks")
    positions, listed = np.full(len(columns), NOT_LISTED), columns != NOT_LISTED
    pairs = Pairs(of[listed], columns[listed])
    found = ranks(search.queries, database.parts, database.tie_order, pairs, count=count, own=search.own)
    positions[listed], best = found
    heads = zip(best.rows, best.scores, strict=True)
    return positions, [Head(rows[rows >= 0], scores[rows >= 0]) for rows, scores in heads]


def _from_scores(search: Retrieval, of: np.ndarray, columns: np.ndarray, count: int) -> tuple[np.ndarray, list[Head]]:
    """The same as `_from_counts`, from all scores of one query after another."""
    tie_order = search.database.tie_order
    positions, heads = np.full(len(columns), NOT_LISTED), []
    bounds = np.searchsorted(of, np.arange(len(search.queries) + 1)).tolist()
    progress = Progress("evaluating", len(search.queries), "queries")
    for (first, last), scores in zip(pairwise(bounds), search.scores(), strict=True):
        listed = first + np.flatnonzero(columns[first:last] != NOT_LISTED)
        positions[listed] = exact.ranks(scores, columns[listed], tie_order)
        best = exact.best(scores, count, tie_order)
        heads.append(Head(best, scores[best]))
        progress.add()
    return positions, heads


def _hits(
    task: RetrievalTask, database: EvaluatedDatabase, graded: Graded, columns: np.ndarray, heads: list[Head]
) -> Iterator[list[Hit]]:
    """Yields the hits of each query. `columns` (P,) are those of `graded`."""
    found = np.concatenate([head.rows for head in heads])
    of_database = found < len(database.rows)
    rows = pa.array(database.rows[np.where(of_database, found, 0)], mask=~of_database)
    labels = iter(task.database.table["label"].take(rows).to_pylist())  # a distractor has none
    for head, judged in zip(heads, graded.by_query(columns, len(heads)), strict=True):
        near = {grade: of_grade[np.isin(of_grade, head.rows)] for grade, of_grade in judged.items()}
        verdicts = task.protocol.level.verdicts(near)
        boxes = [None] * len(head.rows) if head.boxes is None else map(box_of, head.boxes)
        yield [
            Hit(column, next(labels), score, verdicts.get(column, "wrong"), box)
            for column, score, box in zip(head.rows.tolist(), head.scores.tolist(), boxes, strict=True)
        ]
