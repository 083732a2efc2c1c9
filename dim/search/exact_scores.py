"""Exact scores: inner products that don't depend on how the rows are split into blocks.

A sum of floats depends on the order of its terms, and in a matrix product that order depends on the shapes of the
matrices. In float32, the block size could therefore change which of two rows with nearly equal scores comes first. Here
no sum is rounded. The components of all vectors are rounded to multiples of 2⁻²⁶, so each product of two components is
a multiple of 2⁻⁵². Vectors are L2-normalised, so each partial sum lies between −2 and 2. In this range, float64
represents every multiple of 2⁻⁵². The rounding changes a component by at most 2⁻²⁷. This is less than the error of the
float32 arithmetic that computed the component.
"""

from collections.abc import Iterable, Iterator

import numpy as np

GRID = 2.0**26  # grid points per unit: components are rounded to multiples of 1 / GRID
CELLS = 2**25  # the function `scores` holds at most this many scores in memory, 8 bytes each
_PAIRS = 256  # (query, row) pairs whose exact scores are computed at a time


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


def on_grid(vectors: np.ndarray, kind: type[np.floating] = np.float64) -> np.ndarray:
    """`vectors` as floats of the `kind`, with each component rounded to a multiple of 2⁻²⁶.

    For float32 vectors, float32 has the same values as float64: a float32 times 2²⁶ is exact, and an integer already if
    it is at least 2²³.
    """
    scaled: np.ndarray = np.multiply(vectors, kind(GRID), dtype=kind)
    np.rint(scaled, out=scaled)
    scaled /= kind(GRID)
    return scaled


def scores_of_pairs(left: np.ndarray, i: np.ndarray, right: np.ndarray, j: np.ndarray) -> np.ndarray:
    """The exact scores of the pairs left[i[p]] and right[j[p]], float64 (P,). The rows are float32, (n, D)."""
    (left, i), (right, j) = _used(left, i), _used(right, j)
    found = np.empty(len(i))
    for first in range(0, len(i), _PAIRS):
        some = slice(first, first + _PAIRS)
        found[some] = np.vecdot(left[i[some]], right[j[some]], dtype=np.float64)
    return found


def _used(vectors: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of the `vectors` that are in `rows`, on the grid, and the rows of each entry of `rows` among them."""
    used = np.zeros(len(vectors), bool)
    used[rows] = True
    return on_grid(vectors[used], np.float32), (np.cumsum(used) - 1)[rows]
