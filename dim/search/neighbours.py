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
        rows, scores = database.nearest(vectors, k + 1)
        other = rows != own[:, None]
        other[other.all(axis=1), -1] = False  # more rows than k are equal to this one, which didn't find itself
        yield vectors, rows[other].reshape(len(own), k), scores[other].reshape(len(own), k)
        progress.add(len(own))


def others(database: Database, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k other rows nearest to each row, int64 (N, k), and their scores, (N, k), of `blocks_of_others`."""
    _, rows, scores = zip(*blocks_of_others(database, k), strict=True)
    return np.concatenate(rows), np.concatenate(scores)
