"""Exact search: the database rows that head each query's list, in the order (−score, image id).

`scores` yields the scores of all rows for each query. `nearest` finds only the best rows, at the speed of a float32
matrix product. Both define a score in the same way:

**A score doesn't depend on how the rows are split into blocks.** A sum of floats depends on the order of its terms,
and a matrix product chooses that order by its shape. In float32, the block size would therefore decide near ties. Here
no sum is ever rounded. Components are rounded to multiples of 2⁻²⁶, so each product is a multiple of 2⁻⁵². Rows are
L2-normalised, so each partial sum lies between −2 and 2, where float64 represents every multiple of 2⁻⁵². The rounding
moves a component by at most 2⁻²⁷, which is less than the error of the float32 arithmetic that computed it.

**`nearest` agrees with `scores` to the bit.** It uses float32 products only to rule rows out, with a margin for their
rounding error, and scores the remaining rows exactly.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

GRID = 2.0**26
CELLS = 2**25  # scores in memory at once, 8 bytes each
QUERIES = 1024  # in one pass over the database
COLUMNS = 4096  # database rows scored at once: with as many queries, 16 MiB of products
THREADS = 16  # at most
_PAIRS = 2048  # of a query and a row, scored exactly at once


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a database, from row `start` on. `load` returns them, L2-normalised float32 (size, D)."""

    start: int
    size: int
    load: Callable[[], np.ndarray]


def scores(queries: np.ndarray, database: Iterable[np.ndarray], size: int, cells: int = CELLS) -> Iterator[np.ndarray]:
    """Yields for each query the exact scores of all database rows: the inner products, float64 (N,).

    `queries` (Q, D) are L2-normalised. `database` has all N = `size` rows in blocks (n, D) of any sizes. It is iterated
    once for every `cells` / `size` queries, so that at most `cells` scores are in memory at once.
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
        parts: The database. Each part is loaded once for every `QUERIES` queries, by one of several threads.
        tie_order: See `tie_order_of`, (N,).
        count: The number of rows to find for each query.

    Returns:
        The rows, int64 (Q, count), and their exact scores, float64 (Q, count). If the database has fewer than `count`
        rows, the remaining entries are −1 and −inf.
    """
    found = [(np.zeros((0, count), np.int64), np.zeros((0, count)))]
    for first in range(0, len(queries), QUERIES):
        block = _best_of_all(queries[first : first + QUERIES], parts, tie_order, count)
        found.append((block.rows, block.scores))
    rows, scores = map(np.concatenate, zip(*found, strict=True))
    return rows, scores


def tie_order_of(ids: np.ndarray | pa.Array) -> np.ndarray:
    """The tie-break order, int64 (N,): the position of each row when all rows are sorted by their image ids."""
    order = pc.array_sort_indices(pa.array(ids, pa.string())).to_numpy()
    positions = np.empty(len(ids), np.int64)
    positions[order] = np.arange(len(ids))
    return positions


def ranks(scores: np.ndarray, rows: np.ndarray, tie_order: np.ndarray) -> np.ndarray:
    """The 0-based ranks of the database rows `rows` (R,) in the list of one query, int64 (R,).

    `scores` (N,) has the query's score of each database row, −inf for a row that the list leaves out. `tie_order` (N,)
    is from `tie_order_of`.
    """
    if len(rows) == 0:
        return np.zeros(0, np.int64)
    wanted = scores[rows]
    rivals = np.sort(scores[scores >= wanted.min()])
    higher: np.ndarray = len(rivals) - np.searchsorted(rivals, wanted, side="right")
    equal = len(rivals) - np.searchsorted(rivals, wanted, side="left") - higher
    for i in np.flatnonzero(equal > 1):
        higher[i] += np.count_nonzero(tie_order[scores == wanted[i]] < tie_order[rows[i]])
    return higher


def best(scores: np.ndarray, count: int, tie_order: np.ndarray) -> np.ndarray:
    """The first `count` rows of one query's list, or all if it is shorter. See `ranks` for `scores` and `tie_order`."""
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
    shared = iter(parts)  # each thread takes the next part from it
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
        # (Higham, Accuracy and Stability of Numerical Algorithms, eq. 3.5). `on_grid` moves a row by at most √D·2⁻²⁷.
        # Rows are at most 1.01 long. The last term covers the rounding of the thresholds to float32.
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
        """Adds the rows that `other` has found for the same queries."""
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
        """Each query's threshold, float32 (Q,): a row with a lower product can't be among its best."""
        count = self.rows.shape[1]
        thresholds = self.scores[:, -1] - self._tolerance
        short = np.isinf(thresholds)  # these have fewer than `count` rows so far; the block's own rows set their limit
        if short.any() and count <= products.shape[1]:
            own = np.partition(products[short], -count, axis=1)[:, -count]
            thresholds[short] = own.astype(np.float64) - 2 * self._tolerance
        rounded: np.ndarray = thresholds.astype(np.float32)
        return rounded

    def _insert(self, queries: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> None:
        """Inserts for each p the row `rows[p]` with the score `scores[p]` into the list of the query `queries[p]`."""
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
