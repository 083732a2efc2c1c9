"""The nearest neighbours of the database's own rows: the graph on which it is augmented and re-ranked."""

from collections.abc import Iterator

import numpy as np

from dim.progress import Progress
from dim.search.database import Database
from dim.search.nearest import QUERIES


def blocks_of_others(database: Database, k: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Block by block, the vectors (n, D) of all rows, the k other rows nearest to each, (n, k), and their scores.

    Where the database has fewer others, or its index finds fewer, a row is −1 and its score −inf.
    """
    progress = Progress("finding neighbours", len(database.place))
    for start in range(0, len(database.place), QUERIES):
        own = np.arange(start, min(start + QUERIES, len(database.place)))
        vectors = database.take(own)
        yield vectors, *without(own, *database.nearest(vectors, k + 1))
        progress.add(len(own))


def without(own: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lists `rows` (n, k + 1) and their `scores` without the row `own` (n,) of each, else the last one, (n, k)."""
    other = (rows != own[:, None]) | (rows < 0)
    other[other.all(axis=1), -1] = False  # such as where more rows than k are equal to this one
    kept = len(rows), rows.shape[1] - 1
    return rows[other].reshape(kept), scores[other].reshape(kept)


def others(database: Database, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k other rows nearest to each row, int64 (N, k), and their scores, (N, k), of `blocks_of_others`."""
    _, rows, scores = zip(*blocks_of_others(database, k), strict=True)
    return np.concatenate(rows), np.concatenate(scores)
