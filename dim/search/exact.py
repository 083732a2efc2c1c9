"""Exact search: finds the best database rows for each query. Rows with equal scores are ordered by image id.

`scores` computes the scores of all rows for each query. `nearest` finds only the best rows, at the speed of a float32
matrix product. The scores of both functions have two properties:

**A score doesn't depend on how the rows are split into blocks.** A sum of floats depends on the order of its terms, and
in a matrix product that order depends on the shapes of the matrices. In float32, the block size could therefore change
which of two rows with nearly equal scores comes first. Here no sum is rounded. The components of all vectors are
rounded to multiples of 2⁻²⁶, so each product of two components is a multiple of 2⁻⁵². Vectors are L2-normalised, so
each partial sum lies between −2 and 2. In this range, float64 represents every multiple of 2⁻⁵². The rounding changes a
component by at most 2⁻²⁷. This is less than the error of the float32 arithmetic that computed the component.

**`nearest` agrees with `scores` to the bit.** `nearest` first excludes rows by their float32 products, with a margin
for rounding errors, and then computes the exact scores of the remaining rows.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

GRID = 2.0**26  # grid points per unit: components are rounded to multiples of 1 / GRID
CELLS = 2**25  # the function `scores` holds at most this many scores in memory, 8 bytes each
QUERIES = 1024  # queries searched in one pass over the database
COLUMNS = 4096  # database rows per block; the float32 products of a block and 1024 queries take 16 MiB
THREADS = 16  # most threads of a search
_PAIRS = 2048  # (query, row) pairs whose exact scores are computed at a time


@dataclass(frozen=True)
class Part:
    """The `size` rows of a database from row `start` on. `load` returns them as L2-normalised float32 (size, D)."""

    start: int
    size: int
    load: Callable[[], np.ndarray]


def scores(queries: np.ndarray, database: Iterable[np.ndarray], size: int, cells: int = CELLS) -> Iterator[np.ndarray]:
    """Yields one array per query: the exact scores (inner products) of all database rows, float64 (N,).

    `queries` (Q, D) are L2-normalised. `database` yields all N = `size` rows in blocks (n, D) of any sizes. Each
    pass over `database` serves `cells` // N queries, or one query if N is larger than `cells`. This limits the memory.
    """
    step = max(1, cells // max(1, size))
    for start in range(0, len(queries), step):
        block = on_grid(queries[start : start + step])
        matrix = np.empty((len(block), size))
        done = 0
        for rows in database:
            np.matmul(block, on_grid(rows).T, out=matrix[:, done : done + len(rows)])
            done += len(rows)
        yield from matrix


def nearest(
    queries: np.ndarray, parts: Sequence[Part], tie_order: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the best rows of each query, in the order (−score, image id).

    Args:
        queries: L2-normalised vectors, (Q, D).
        parts: The database. Each part is loaded once per `QUERIES` queries, by one of several threads.
        tie_order: The tie-break order of the database rows, from `tie_order_of`, (N,).
        count: The number of rows to find for each query.

    Returns:
        The rows, int64 (Q, count), and their exact scores, float64 (Q, count). If the database has fewer than `count`
        rows, the remaining entries are −1 in the rows and −inf in the scores.
    """
    found = [(np.zeros((0, count), np.int64), np.zeros((0, count)))]
    for first in range(0, len(queries), QUERIES):
        block = _best_of_all(queries[first : first + QUERIES], parts, tie_order, count)
        found.append((block.rows, block.scores))
    rows, scores = map(np.concatenate, zip(*found, strict=True))
    return rows, scores


def tie_order_of(ids: np.ndarray | pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The tie-break order, int64 (N,): the position of each row when all rows are sorted by their image ids."""
    order = pc.sort_indices(pa.array(ids, pa.string()) if isinstance(ids, np.ndarray) else ids).to_numpy()
    positions = np.empty(len(ids), np.int64)
    positions[order] = np.arange(len(ids))
    return positions


def ranks(scores: np.ndarray, rows: np.ndarray, tie_order: np.ndarray) -> np.ndarray:
    """The 0-based ranks of the database rows `rows` (R,) in the list of one query, int64 (R,).

    `scores` (N,) has the query's score of each database row, or −inf if the row is not in the list. `tie_order` (N,)
    is from `tie_order_of`.
    """
    return before(scores, tie_order, scores[rows], tie_order[rows], among=True)


def before(
    scores: np.ndarray, tie_order: np.ndarray, wanted: np.ndarray, ties: np.ndarray, among: bool = False
) -> np.ndarray:
    """How many of n rows come before each of R rows in a query's list, int64 (R,).

    The n rows have `scores` and `tie_order`, (n,), and the R rows have the scores `wanted` and the tie-break order
    `ties`, (R,). `among` says that all R rows are among the n rows; else any of them may be.
    """
    if len(wanted) == 0:
        return np.zeros(0, np.int64)
    rivals = np.sort(scores[scores >= wanted.min()])
    higher: np.ndarray = len(rivals) - np.searchsorted(rivals, wanted, side="right")
    equal = len(rivals) - np.searchsorted(rivals, wanted, side="left") - higher
    for i in np.flatnonzero(equal > among):
        higher[i] += np.count_nonzero(tie_order[scores == wanted[i]] < ties[i])
    return higher


def best(scores: np.ndarray, count: int, tie_order: np.ndarray) -> np.ndarray:
    """The first rows of one query's list, `count` or fewer. `scores` and `tie_order` are the same as in `ranks`."""
    listed = np.flatnonzero(scores > -np.inf)
    if count < len(listed):
        threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
        listed = np.flatnonzero(scores >= threshold)
    return listed[np.lexsort((tie_order[listed], -scores[listed]))][:count]


def on_grid(vectors: np.ndarray) -> np.ndarray:
    """`vectors` as float64, with each component rounded to a multiple of 2⁻²⁶."""
    scaled: np.ndarray = np.multiply(vectors, GRID, dtype=np.float64)
    np.rint(scaled, out=scaled)
    scaled /= GRID
    return scaled


def _best_of_all(queries: np.ndarray, parts: Sequence[Part], tie_order: np.ndarray, count: int) -> "_BestRows":
    shared = iter(parts)  # all threads take their parts from this iterator
    threads = max(1, min(os.cpu_count() or 1, len(parts), THREADS))
    # Independent threads are faster than the threads of one matrix product, which wait for each other.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda _: _BestRows(queries, tie_order, count).add_parts(shared), range(threads))
        merged = next(found)
        for other in found:
            merged.merge(other)
    return merged


class _BestRows:
    """The best `count` rows of each query among those added so far, with their exact scores."""

    def __init__(self, queries: np.ndarray, tie_order: np.ndarray, count: int) -> None:
        self._queries = queries.astype(np.float32)
        self._exact = on_grid(queries)
        self._tie_order = tie_order
        self._products = np.empty((len(queries), COLUMNS), np.float32)
        self.rows = np.full((len(queries), count), -1, np.int64)
        self.scores = np.full((len(queries), count), -np.inf)
        # A float32 inner product of D terms, summed in any order, errs by at most D·u·‖x‖‖y‖ to first order, u = 2⁻²⁴
        # (Higham, Accuracy and Stability of Numerical Algorithms, eq. 3.5). The norm of
        # a row is at most 1.01, and 1.05 is above 1.01². `on_grid` moves a query and a row by at most √D·2⁻²⁷ each, so
        # √D·2⁻²⁵ is twice their sum. The last term covers the rounding of the thresholds to float32.
        dimension = queries.shape[1]
        self._tolerance = 1.05 * dimension * 2.0**-24 + dimension**0.5 * 2.0**-25 + 2.0**-22

    def add_parts(self, parts: Iterable[Part]) -> "_BestRows":
        """Adds the rows of `parts`, block by block."""
        for part in parts:
            rows = part.load()
            for start in range(0, len(rows), COLUMNS):
                self._add_block(rows[start : start + COLUMNS], part.start + start)
        return self

    def merge(self, other: "_BestRows") -> None:
        """Adds the rows that `other` has for the same queries."""
        queries, columns = np.nonzero(other.rows >= 0)
        self._insert(queries, other.rows[queries, columns], other.scores[queries, columns])

    def _add_block(self, block: np.ndarray, start: int) -> None:
        products = np.matmul(self._queries, block.T, out=self._products[:, : len(block)])
        queries, columns = np.divmod(np.flatnonzero(products >= self._thresholds(products)[:, None]), len(block))
        scores = np.empty(len(queries))
        for first in range(0, len(queries), _PAIRS):
            pairs = slice(first, first + _PAIRS)
            candidates = on_grid(block[columns[pairs]])
            scores[pairs] = np.einsum("ij,ij->i", self._exact[queries[pairs]], candidates)
        self._insert(queries, columns + start, scores)

    def _thresholds(self, products: np.ndarray) -> np.ndarray:
        """The threshold of each query, float32 (Q,). A row with a product below it can't be among the query's best."""
        count = self.rows.shape[1]
        thresholds = self.scores[:, -1] - self._tolerance
        short = np.isinf(thresholds)  # queries with fewer than `count` rows so far: this block sets their threshold
        if short.any() and count <= products.shape[1]:
            own = np.partition(products[short], -count, axis=1)[:, -count]
            thresholds[short] = own.astype(np.float64) - 2 * self._tolerance
        rounded: np.ndarray = thresholds.astype(np.float32)
        return rounded

    def _insert(self, queries: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> None:
        """Inserts the row `rows[p]` with the score `scores[p]` into the list of the query `queries[p]`, for each p."""
        touched, queries = np.unique(queries, return_inverse=True)
        held = self.rows[touched] >= 0
        queries = np.concatenate([np.nonzero(held)[0], queries])
        rows = np.concatenate([self.rows[touched][held], rows])
        scores = np.concatenate([self.scores[touched][held], scores])
        order = np.lexsort((self._tie_order[rows], -scores, queries))
        queries, rows, scores = queries[order], rows[order], scores[order]
        ranks = np.arange(len(rows)) - np.searchsorted(queries, queries)
        kept = ranks < self.rows.shape[1]
        at = touched[queries[kept]], ranks[kept]
        self.rows[at], self.scores[at] = rows[kept], scores[kept]
