"""Exact ranks of given rows in the lists of an exact search, without keeping the scores of all rows.

An evaluation asks at which rank each positive of a query is. `ranks` answers that in two passes over the database. The
first computes the scores of the given rows. The second counts the rows that come before each of them, a part of the
database and some queries at a time, in tasks of the cluster or in threads. The counts of all parts are added, so the
ranks don't depend on how the work is divided. All scores are exact (see `dim.search.exact`): float64 products on the
grid need no margin for rounding errors, whose candidates would take longer to check than the products.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dim.app.tasks import spread
from dim.search import exact
from dim.search.exact import Part, grouped, on_grid

# A unit of work has about `ROWS` rows, or fewer if the database has no more than `_UNITS` such units, but at least one
# part. It computes about `CELLS` scores, for which a CPU takes some seconds.
ROWS, _UNITS, CELLS = 2**16, 32, 2**27
_QUERIES = 512  # queries of a block; the scores of a block, and its rows, take 16 MiB each
_COLUMNS = 4096  # database rows of a block
_PAIRS = 2048  # pairs whose scores are computed at a time


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
class Wanted:
    """The pairs of query q are from starts[q] to before starts[q + 1]. Their rows have `scores` and `ties`, (P,)."""

    starts: np.ndarray
    scores: np.ndarray
    ties: np.ndarray  # places in the tie-break order


def ranks(
    queries: np.ndarray,
    parts: Sequence[Part],
    tie_order: np.ndarray,
    pairs: Pairs,
    own: np.ndarray | None = None,
    *,
    workers: int | None = None,
) -> np.ndarray:
    """The 0-based rank of each pair's row in the list of the pair's query, int64 (P,).

    Args:
        queries: L2-normalised vectors, (Q, D).
        parts: The database, as consecutive parts that any process can load. Each is loaded for every `CELLS` scores.
        tie_order: The tie-break order of the database rows, from `exact.tie_order_of`, (N,).
        pairs: The pairs. None has the row that `own` leaves out.
        own: The row that is left out of each query's list, (Q,). −1 leaves no row out.
        workers: The most units of work that are done at a time. By default, one for each CPU.
    """
    own = np.full(len(queries), -1) if own is None else own
    (leaving,) = np.nonzero(own >= 0)
    both = np.concatenate([pairs.queries, leaving])
    order = np.argsort(both, kind="stable")
    counted = np.empty(len(both), np.int64)
    rows = np.concatenate([pairs.rows, own[leaving]])
    counted[order] = _counted(queries, parts, tie_order, Pairs(both[order], rows[order]), workers)
    place_of_own = np.full(len(queries), len(tie_order))
    place_of_own[leaving] = counted[len(pairs) :]
    counts = counted[: len(pairs)]
    found: np.ndarray = counts - (place_of_own[pairs.queries] < counts)
    return found


def _counted(
    queries: np.ndarray, parts: Sequence[Part], tie_order: np.ndarray, pairs: Pairs, workers: int | None
) -> np.ndarray:
    """The number of rows that come before each pair's row, int64 (P,)."""
    groups = list(grouped(parts, min(ROWS, len(tie_order) // _UNITS)))
    scores = np.empty(len(pairs))
    order = np.argsort(pairs.rows, kind="stable")
    bounds = np.searchsorted(pairs.rows[order], [group[0].start for group in groups] + [len(tie_order)])
    places = [order[first:last] for first, last in pairwise(bounds)]
    asked = [
        Asked(group, Pairs(pairs.queries[place], pairs.rows[place]))
        for group, place in zip(groups, places, strict=True)
    ]
    for unit, found in spread(score_pairs, asked, [queries], workers=workers):
        scores[places[unit]] = found
    starts = np.searchsorted(pairs.queries, np.arange(len(queries) + 1))
    wanted = Wanted(starts, scores, tie_order[pairs.rows])
    blocks = list(_blocks(groups, len(queries)))
    counts = np.zeros(len(pairs), np.int64)
    shared = [queries, wanted, tie_order]
    counted = spread(count_before, blocks, shared, workers=workers, stage="evaluating", size=len, unit="scores")
    for unit, found in counted:
        counts[starts[blocks[unit].first] : starts[blocks[unit].last]] += found
    return counts


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
        vectors = part.load()
        for start in range(first, last, _PAIRS):
            chosen = slice(start, min(start + _PAIRS, last))
            left, right = queries[pairs.queries[chosen]], vectors[pairs.rows[chosen] - part.start]
            found[chosen] = np.einsum("ij,ij->i", on_grid(left), on_grid(right))
    return found


def count_before(unit: Block, queries: np.ndarray, wanted: Wanted, tie_order: np.ndarray) -> np.ndarray:
    """How many rows of the unit's parts come before the row of each pair of the unit's queries, int64."""
    starts = wanted.starts
    offset = starts[unit.first]
    counts = np.zeros(starts[unit.last] - offset, np.int64)
    for part in unit.parts:
        vectors = part.load()
        for start in range(0, len(vectors), _COLUMNS):
            block = on_grid(vectors[start : start + _COLUMNS]).T
            order = tie_order[part.start + start :][: block.shape[1]]
            for first in range(unit.first, unit.last, _QUERIES):
                last = min(first + _QUERIES, unit.last)
                for query, row in enumerate(on_grid(queries[first:last]) @ block, start=first):
                    own = slice(starts[query], starts[query + 1])
                    found = exact.before(row, order, wanted.scores[own], wanted.ties[own])
                    counts[own.start - offset : own.stop - offset] += found
    return counts
