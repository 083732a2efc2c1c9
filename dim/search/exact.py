"""Exact search: the score of every database row for every query, in the order (−score, id).

**Scores don't depend on the blocks.** A sum of floats depends on the order of its terms, and the order in which a
matrix product adds depends on its shape: in float32, the block size would decide near ties. Here every sum is exact.
Components are rounded to multiples of 2⁻²⁶, so products are multiples of 2⁻⁵², and as rows are L2-normalised no partial
sum reaches 2: each is a float64 without any rounding, in whichever order. The rounding moves a component by at most
7.5e-9, less than the float32 arithmetic that made it.

The rows that head each query's list, exactly, at the speed of a float32 matrix product.

Float32 products only rule rows out, with a margin that covers their rounding; what they cannot rule out is scored on
the grid of `exact`. So the result is that of `exact.scores` and `exact.best`, to the bit, whatever the parts.
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


def scores(queries: np.ndarray, database: Iterable[np.ndarray], size: int, cells: int = CELLS) -> Iterator[np.ndarray]:
    """Yields for each of `queries` (Q, D) the inner products with all `size` database rows, float64 (size,).

    `database` gives the rows in blocks (n, D) of any sizes; it is gone through once for every `cells` / `size` queries.
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


def tie_order_of(ids: np.ndarray | pa.Array) -> np.ndarray:
    """The place of each id when all are sorted, int64 (N,): what breaks ties."""
    order = pc.array_sort_indices(pa.array(ids, pa.string())).to_numpy()
    found = np.empty(len(ids), np.int64)
    found[order] = np.arange(len(ids))
    return found


def ranks(row: np.ndarray, columns: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The 0-based ranks of the database rows `columns` (R,) in the list of the query with the scores `row` (N,).

    `place` (N,) is that of `places`. A row that is not in the list at all has the score −inf.
    """
    if len(columns) == 0:
        return np.zeros(0, np.int64)
    wanted = row[columns]
    rivals = np.sort(row[row >= wanted.min()])
    higher: np.ndarray = len(rivals) - np.searchsorted(rivals, wanted, side="right")
    equal = len(rivals) - np.searchsorted(rivals, wanted, side="left") - higher
    for i in np.flatnonzero(equal > 1):
        higher[i] += np.count_nonzero(place[row == wanted[i]] < place[columns[i]])
    return higher


def best(row: np.ndarray, count: int, place: np.ndarray) -> np.ndarray:
    """The `count` database rows, or fewer, that head the list of the query with the scores `row` (N,)."""
    listed = np.flatnonzero(row > -np.inf)
    if count < len(listed):
        threshold = np.partition(row, len(row) - count)[len(row) - count]
        listed = np.flatnonzero(row >= threshold)
    return listed[np.lexsort((place[listed], -row[listed]))][:count]


def on_grid(vectors: np.ndarray) -> np.ndarray:
    """`vectors`, float64, their components rounded to multiples of 2⁻²⁶."""
    scaled: np.ndarray = np.multiply(vectors, GRID, dtype=np.float64)
    np.rint(scaled, out=scaled)
    scaled /= GRID
    return scaled


QUERIES = 1024  # in one pass over the database
COLUMNS = 4096  # database rows scored at once: with as many queries, 16 MiB of products
THREADS = 16  # at most
_PAIRS = 2048  # scored on the grid at once


@dataclass(frozen=True)
class Part:
    """Rows of a database: `load` gives them, L2-normalised float32 (size, D), the first being row `start`."""

    start: int
    size: int
    load: Callable[[], np.ndarray]


def nearest(queries: np.ndarray, parts: Sequence[Part], place: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` best database rows of each of `queries` (Q, D) in the order (−score, id), and their scores.

    `parts` are loaded once for every `QUERIES` queries, by a thread a core. `place` is that of `exact.places`. Returns
    rows int64 and scores float64, both (Q, count); where the database is smaller, the rest is −1 and −inf.
    """
    found = [(np.zeros((0, count), np.int64), np.zeros((0, count)))]
    for first in range(0, len(queries), QUERIES):
        best = _of_all(queries[first : first + QUERIES], parts, place, count)
        found.append((best.rows, best.scores))
    rows, scores = map(np.concatenate, zip(*found, strict=True))
    return rows, scores


def _of_all(queries: np.ndarray, parts: Sequence[Part], place: np.ndarray, count: int) -> "_Best":
    left = iter(parts)  # which the threads share
    threads = max(1, min(os.cpu_count() or 1, len(parts), THREADS))
    # Threads of their own that wait for nobody are faster than those of a matrix product, which wait for each other.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        each = pool.map(lambda _: _Best(queries, place, count).see_all(left), range(threads))
        best = next(each)
        for other in each:
            best.merge(other)
    return best


class _Best:
    """The best `count` rows of each query among those seen so far, and their scores on the grid."""

    def __init__(self, queries: np.ndarray, place: np.ndarray, count: int) -> None:
        self._queries = queries.astype(np.float32)
        self._exact = on_grid(queries)
        self._place = place
        self._products = np.empty((len(queries), COLUMNS), np.float32)
        self.rows = np.full((len(queries), count), -1, np.int64)
        self.scores = np.full((len(queries), count), -np.inf)
        # A product of D terms, summed in any order, errs by at most D·u·‖x‖‖y‖ to first order (Higham, Accuracy and
        # Stability of Numerical Algorithms, eq. 3.5), u = 2⁻²⁴; a row moves by at most √D·2⁻²⁷ to the grid. Rows are
        # at most 1.01 long. The last term covers the rounding of limits to float32.
        dimension = queries.shape[1]
        self._tolerance = 1.05 * dimension * 2.0**-24 + dimension**0.5 * 2.0**-25 + 2.0**-22

    def see_all(self, parts: Iterable[Part]) -> "_Best":
        """Takes what belongs to the best from all of `parts`."""
        for part in parts:
            rows = part.load()
            for start in range(0, len(rows), COLUMNS):
                self._see(rows[start : start + COLUMNS], part.start + start)
        return self

    def _see(self, block: np.ndarray, start: int) -> None:
        products = np.matmul(self._queries, block.T, out=self._products[:, : len(block)])
        queries, columns = np.divmod(np.flatnonzero(products >= self._limits(products)[:, None]), len(block))
        scores = np.empty(len(queries))
        for first in range(0, len(queries), _PAIRS):
            pairs = slice(first, first + _PAIRS)
            candidates = on_grid(block[columns[pairs]])
            scores[pairs] = np.einsum("ij,ij->i", self._exact[queries[pairs]], candidates)
        self._take(queries, columns + start, scores)

    def _limits(self, products: np.ndarray) -> np.ndarray:
        """The product under which a row can't be among the best of a query, float32 (Q,)."""
        count = self.rows.shape[1]
        limits = self.scores[:, -1] - self._tolerance
        short = np.isinf(limits)  # fewer than `count` rows were seen, so the block's own best limit what it can offer
        if short.any() and count <= products.shape[1]:
            own = np.partition(products[short], -count, axis=1)[:, -count]
            limits[short] = own.astype(np.float64) - 2 * self._tolerance
        rounded: np.ndarray = limits.astype(np.float32)
        return rounded

    def merge(self, other: "_Best") -> None:
        """Takes what belongs to the best from what `other` has found for the same queries."""
        queries, places = np.nonzero(other.rows >= 0)
        self._take(queries, other.rows[queries, places], other.scores[queries, places])

    def _take(self, queries: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> None:
        # Merges `rows` (P,) with their `scores` (P,), each for one of `queries` (P,), into what is held.
        touched, queries = np.unique(queries, return_inverse=True)
        held = self.rows[touched] >= 0
        queries = np.concatenate([np.nonzero(held)[0], queries])
        rows = np.concatenate([self.rows[touched][held], rows])
        scores = np.concatenate([self.scores[touched][held], scores])
        order = np.lexsort((self._place[rows], -scores, queries))
        queries, rows, scores = queries[order], rows[order], scores[order]
        ranks = np.arange(len(rows)) - np.searchsorted(queries, queries)
        kept = ranks < self.rows.shape[1]
        at = touched[queries[kept]], ranks[kept]
        self.rows[at], self.scores[at] = rows[kept], scores[kept]
