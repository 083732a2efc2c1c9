"""Exact search: finds the best database rows for each query. Rows with equal scores are ordered by image id.

`nearest` finds the best rows, at the speed of a float32 matrix product, on all CPUs of the cluster. It first excludes
rows by their float32 products, with a margin for rounding errors, and then computes the exact scores of the remaining
rows (`exact_scores`). So its scores are those of `exact_scores.scores`, to the bit.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.app import tasks
from dim.io.storage import parallel_map
from dim.model import gpu_products
from dim.search.best_rows import BestRows, reached
from dim.search.exact_scores import on_grid, scores_of_pairs

QUERIES = 1024  # queries of a block of products
COLUMNS = 4096  # database rows of a block of products; the products of a block take 16 MiB
# A unit of work searches at most so many rows for at most so many queries, some seconds of work for a CPU. A small
# database is split into about `_UNITS` units, but into none that is smaller than a block or a part.
_UNIT_ROWS, UNIT_QUERIES, _UNITS = 65_536, 8192, 64
_UNIT_CELLS = 2**24  # most entries of the lists of a unit, 16 bytes each
_LOADED = 8  # most parts that are loaded at a time for a block
_GPU_PAIRS = 2**34  # pairs of a query and a row from which a search uses GPUs; TensorFlow starts while CPUs do fewer


@dataclass(frozen=True)
class Part:
    """The `size` rows of a database from row `start` on. `load` returns them as L2-normalised float32 (size, D).

    Parts are sent to other processes, so `load` must work there.
    """

    start: int
    size: int
    load: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Search:
    """What all units of a search share.

    Attributes:
        queries: On the grid, float32 (Q, D).
        bounds: Scores that `count` rows are known to reach, (Q,). Rows with lower scores may be left out.
        tie_order: See `nearest`.
        count: The number of rows to find for each query.
        multiply: Writes left·rightᵀ of two float32 matrices to the third argument, and returns it.
    """

    queries: np.ndarray
    bounds: np.ndarray
    tie_order: np.ndarray
    count: int
    multiply: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def nearest(
    queries: np.ndarray,
    parts: Sequence[Part],
    tie_order: np.ndarray,
    count: int,
    workers: int | None = None,
    *,
    gpus: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the best rows of each query, in the order (−score, image id).

    The work is divided by `tasks.spread`. The result doesn't depend on the parts, nor on who does the work.

    Args:
        queries: L2-normalised vectors, (Q, D).
        parts: The database, in the order of the rows. Each part is loaded once per `UNIT_QUERIES` queries.
        tie_order: The tie-break order of the database rows, from `tie_order_of`, (N,).
        count: The number of rows to find for each query.
        workers: The most units that are searched at a time. By default, one for each CPU.
        gpus: The GPUs of the task that searches a unit. By default, one if the cluster has GPUs and the work is large.

    Returns:
        The rows, int64 (Q, count), and their exact scores, float64 (Q, count). If the database has fewer than `count`
        rows, the remaining entries are −1 in the rows and −inf in the scores.
    """
    step = max(1, min(UNIT_QUERIES, _UNIT_CELLS // max(1, count)))
    chunks = [slice(start, start + step) for start in range(0, len(queries), step)]
    groups = list(grouped(parts, min(_UNIT_ROWS, max(COLUMNS, len(tie_order) // _UNITS))))
    units = [(chunk, group) for chunk in chunks for group in groups]
    best = BestRows(len(queries), count, tie_order)
    bounds = np.full(len(queries), -np.inf)  # units that run in this process see how they rise; tasks have a copy
    large = len(queries) * len(tie_order) >= _GPU_PAIRS
    gpus = tasks.gpus_of_a_call(gpus) if large or gpus else 0.0
    multiply = gpu_products.multiply if gpus else _multiply
    search = Search(on_grid(queries, np.float32), bounds, tie_order, count, multiply)
    for position, found in tasks.spread(best_of_unit, units, [search], workers=workers, gpus=gpus):
        chunk = units[position][0]
        best.merge(chunk.start, *found)
        bounds[chunk] = best.scores[chunk, -1]
    return best.rows, best.scores


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


def grouped(parts: Iterable[Part], rows: int) -> Iterator[list[Part]]:
    """Yields consecutive parts that have `rows` rows or more together; the last group may have fewer."""
    group: list[Part] = []
    for part in parts:
        group.append(part)
        if sum(part.size for part in group) >= rows:
            yield group
            group = []
    if group:
        yield group


def _multiply(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> np.ndarray:
    return np.matmul(left, right.T, out=out)


def best_of_unit(unit: tuple[slice, list[Part]], search: Search) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best rows in some parts, for the queries of a slice, and their scores. Both are (n, count)."""
    chunk, parts = unit
    queries, bounds = search.queries[chunk], search.bounds[chunk]
    best = BestRows(len(queries), search.count, search.tie_order)
    products = np.empty((QUERIES, COLUMNS), np.float32)
    for group in grouped(parts, COLUMNS):
        loaded = list(parallel_map(lambda part: part.load(), group, _LOADED)) if len(group) > 1 else [group[0].load()]
        vectors = np.concatenate(loaded) if len(loaded) > 1 else loaded[0]
        for start in range(0, len(vectors), COLUMNS):
            rows = vectors[start : start + COLUMNS]
            for first in range(0, len(queries), QUERIES):
                some = slice(first, first + QUERIES)
                least = np.maximum(best.scores[some, -1], bounds[some])
                block = search.multiply(queries[some], rows, products[: len(least), : len(rows)])
                found, columns, scores = _screened(queries[some], rows, block, least, search.count)
                best.insert(found + first, columns + group[0].start + start, scores)
    return best.rows, best.scores


def _screened(
    queries: np.ndarray, rows: np.ndarray, products: np.ndarray, least: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the rows that may be among a query's best. Returns numbers of queries and rows, and their exact scores.

    `queries` (Q, D) are on the grid, `rows` (n, D) are not, and `products` (Q, n) are theirs. Rows with a score of less
    than `least` (Q,) are not needed.
    """
    # A float32 inner product of D terms, summed in any order, errs by at most D·u·‖x‖‖y‖ to first order, u = 2⁻²⁴
    # (Higham, Accuracy and Stability of Numerical Algorithms, eq. 3.5). The norm of a row is at most 1.01, and 1.05 is
    # above 1.01². `on_grid` moves a row by at most √D·2⁻²⁷, and the second term is twice that. The last term covers the
    # rounding of the thresholds to float32.
    dimension = rows.shape[1]
    tolerance = 1.05 * dimension * 2.0**-24 + dimension**0.5 * 2.0**-26 + 2.0**-22
    thresholds = least - tolerance
    unknown = np.isinf(least)
    if unknown.any() and count <= len(rows):
        thresholds[unknown] = reached(products[unknown], count) - 2 * tolerance
    found = np.flatnonzero(products >= thresholds.astype(np.float32)[:, None])
    numbers, columns = np.divmod(found, len(rows))
    return numbers, columns, scores_of_pairs(queries, numbers, rows, columns)
