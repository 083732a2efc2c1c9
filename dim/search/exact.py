"""Exact search: the score of every database row for every query, in the order (−score, id).

**Scores don't depend on the blocks.** A sum of floats depends on the order of its terms, and the order in which a
matrix product adds depends on its shape: in float32, the block size would decide near ties. Here every sum is exact.
Components are rounded to multiples of 2⁻²⁶, so products are multiples of 2⁻⁵², and as rows are L2-normalised no partial
sum reaches 2: each is a float64 without any rounding, in whichever order. The rounding moves a component by at most
7.5e-9, less than the float32 arithmetic that made it.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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


def places(ids: np.ndarray | pa.Array) -> np.ndarray:
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
