"""The ranks of given rows in the lists of an exact search, and the first rows of each list.

An evaluation asks at which rank each positive of a query is. `ranks` answers that in two passes over the database. The
first computes the scores of the given rows. The second computes all scores, a part of the database and some queries at
a time, in tasks of the cluster or in threads. It counts the rows that come before each given row, and keeps the best
rows. The counts of all parts are added, so the ranks don't depend on how the work is divided.

All scores are exact (see `dim.search.exact`). Products of float32 would take half the time, but their rounding errors
leave open whether some rows come before a given row. Exact scores of these rows take as long as the time saved, unless
most of the given rows are near the head of their lists.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dim.app.tasks import spread
from dim.search import exact
from dim.search.best_rows import BestRows, reached
from dim.search.exact import Part, grouped
from dim.search.exact_scores import on_grid, scores_of_pairs

# A unit of work has about `ROWS` rows, or fewer if the database has no more than `_UNITS` such units, but at least one
# part. It computes about `CELLS` scores, for which a CPU takes some seconds.
ROWS, _UNITS, CELLS = 2**16, 32, 2**27
_QUERIES = 512  # queries of a block; the scores of a block, and its rows, take 16 MiB each
_COLUMNS = 4096  # database rows of a block


@dataclass(frozen=True)
class Pairs:
    """P pairs of a query and a database row: positions of queries, ascending, and numbers of rows, int64 (P,)."""

    queries: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Asked:
    """A unit of the first pass: the database `parts`, and the pairs whose rows are in them."""

    parts: list[Part]
    pairs: Pairs


@dataclass(frozen=True)
class Block:
    """A unit of the second pass: the database `parts`, and the queries from `first` to before `last`."""

    parts: list[Part]
    first: int
    last: int

    def __len__(self) -> int:
        return (self.last - self.first) * sum(part.size for part in self.parts)


@dataclass(frozen=True)
class Search:
    """What all units of the second pass share.

    The pairs of query q are from starts[q] to before starts[q + 1]. Their rows have `scores` and `ties`, places in the
    tie-break order, (P,). The other attributes are the arguments of `ranks`.
    """

    queries: np.ndarray
    own: np.ndarray
    tie_order: np.ndarray
    count: int
    starts: np.ndarray
    scores: np.ndarray
    ties: np.ndarray


def ranks(
    queries: np.ndarray,
    parts: Sequence[Part],
    tie_order: np.ndarray,
    pairs: Pairs,
    *,
    count: int,
    own: np.ndarray | None = None,
    workers: int | None = None,
) -> tuple[np.ndarray, BestRows]:
    """Finds the 0-based rank of each pair's row in the list of the pair's query, and the first rows of each list.

    Args:
        queries: L2-normalised vectors, (Q, D).
        parts: The database, as consecutive parts that any process can load. Each is loaded for every `CELLS` scores.
        tie_order: The tie-break order of the database rows, from `exact.tie_order_of`, (N,).
        pairs: The pairs. None has the row that `own` leaves out.
        count: The number of first rows to find.
        own: The row that is left out of each query's list, (Q,). −1 leaves no row out.
        workers: The most units of work that are done at a time. By default, one for each CPU.

    Returns:
        The ranks, int64 (P,), and the first `count` rows of each list with their scores.
    """
    own = np.full(len(queries), -1) if own is None else own
    groups = list(grouped(parts, min(ROWS, len(tie_order) // _UNITS)))
    scores = _scores(queries, groups, pairs, workers)
    starts = np.searchsorted(pairs.queries, np.arange(len(queries) + 1))
    search = Search(queries, own, tie_order, count, starts, scores, tie_order[pairs.rows])
    blocks = list(_blocks(groups, len(queries)))
    counts, best = np.zeros(len(pairs), np.int64), BestRows(len(queries), count, tie_order)
    found = spread(search_block, blocks, [search], workers=workers, stage="evaluating", size=len, unit="scores")
    for unit, (before, *head) in found:
        first, last = blocks[unit].first, blocks[unit].last
        counts[starts[first] : starts[last]] += before
        best.merge(first, *head)
    return counts, best


def _scores(queries: np.ndarray, groups: list[list[Part]], pairs: Pairs, workers: int | None) -> np.ndarray:
    """The exact scores of the pairs, float64 (P,)."""
    scores = np.empty(len(pairs))
    order = np.argsort(pairs.rows, kind="stable")
    bounds = [*np.searchsorted(pairs.rows[order], [group[0].start for group in groups]).tolist(), len(order)]
    places = [order[first:last] for first, last in pairwise(bounds)]
    asked = [
        Asked(group, Pairs(pairs.queries[place], pairs.rows[place]))
        for group, place in zip(groups, places, strict=True)
    ]
    for unit, found in spread(score_pairs, asked, [queries], workers=workers):
        scores[places[unit]] = found
    return scores


def _blocks(groups: Sequence[list[Part]], count: int) -> Iterator[Block]:
    """Yields the units of the second pass for `count` queries."""
    for group in groups:
        step = max(_QUERIES, CELLS // sum(part.size for part in group))
        for first in range(0, count, step):
            yield Block(group, first, min(first + step, count))


def score_pairs(unit: Asked, queries: np.ndarray) -> np.ndarray:
    """The exact scores of the pairs of `unit`, whose rows are ascending, float64 (P,)."""
    pairs, found = unit.pairs, np.empty(len(unit.pairs))
    for part in unit.parts:
        first, last = np.searchsorted(pairs.rows, [part.start, part.start + part.size])
        if first == last:
            continue
        columns = pairs.rows[first:last] - part.start
        found[first:last] = scores_of_pairs(queries, pairs.queries[first:last], part.load(), columns)
    return found


def search_block(unit: Block, search: Search) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Searches the unit's parts for the unit's queries.

    Returns:
        How many rows come before the row of each pair of these queries, int64 (p,). And the best rows of each query,
        int64 (q, count), and their scores, float64 (q, count).
    """
    starts = search.starts
    offset = starts[unit.first]
    counts = np.zeros(starts[unit.last] - offset, np.int64)
    best = BestRows(unit.last - unit.first, search.count, search.tie_order)
    for part in unit.parts:
        vectors = part.load()
        for above in range(0, len(vectors), _COLUMNS):
            block = on_grid(vectors[above : above + _COLUMNS]).T
            start = part.start + above
            order = search.tie_order[start : start + block.shape[1]]
            for first in range(unit.first, unit.last, _QUERIES):
                some = slice(first, min(first + _QUERIES, unit.last))
                scores = on_grid(search.queries[some]) @ block
                _leave_out(scores, search.own[some] - start)
                _keep_best(best, first - unit.first, start, scores)
                for query, row in enumerate(scores, start=first):
                    pairs = slice(starts[query], starts[query + 1])
                    before = exact.before(row, order, search.scores[pairs], search.ties[pairs])
                    counts[pairs.start - offset : pairs.stop - offset] += before
    return counts, best.rows, best.scores


def _leave_out(scores: np.ndarray, columns: np.ndarray) -> None:
    """Sets the score of each query's column in `columns` (Q,) to −inf, if there is such a column."""
    (here,) = np.nonzero((columns >= 0) & (columns < scores.shape[1]))
    scores[here, columns[here]] = -np.inf


def _keep_best(best: BestRows, query: int, row: int, scores: np.ndarray) -> None:
    """Inserts the best of the `scores` (q, n) of the queries from `query` on and the rows from `row` on into `best`."""
    count = best.rows.shape[1]
    least = np.maximum(best.scores[query : query + len(scores), -1], -2.0)  # no score is as low, but −inf is lower
    if (least == -2.0).any() and count <= scores.shape[1]:
        least = np.maximum(least, reached(scores, count))
    queries, columns = np.nonzero(scores >= least[:, None])
    best.insert(queries + query, columns + row, scores[queries, columns])
