"""A retrieval: queries, the database to search, and a function that changes the scores.

Each expansion method makes a changed copy of one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dim.search import exact
from dim.search.database import Database, without_own


class FirstRows(NamedTuple):
    """The first `rows` of a query's list, best first, with their final scores and their cosines, all (n,)."""

    rows: np.ndarray
    scores: np.ndarray
    cosines: np.ndarray


@dataclass(frozen=True)
class Retrieval:
    """Queries, the database to search, and how to make the final list of each query.

    Args:
        queries: L2-normalised vectors, (Q, D).
        database: The database to search.
        rescore: Makes a query's final scores from the query's scores, both (N,); −inf leaves a row out of the list.
        own: The database row that is left out of each query's list and neighbours, (Q,). −1 leaves no row out.
    """

    queries: np.ndarray
    database: Database
    rescore: Callable[[np.ndarray], np.ndarray] | None = None
    own: np.ndarray | None = None

    def scores(self) -> Iterator[np.ndarray]:
        """Yields one array per query: the final scores of all rows, (N,). A row that is not in the list has −inf."""
        for found, _ in self._rescored():
            yield found

    def _rescored(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields two arrays per query: the final scores of all rows, and the cosines."""
        own_rows = [-1] * len(self.queries) if self.own is None else self.own.tolist()
        for own, row in zip(own_rows, self.database.scores(self.queries), strict=True):
            left_out = slice(own, own + 1) if own >= 0 else slice(0)
            row[left_out] = -np.inf
            # The order of rows may change the last bits of a new score; rounding to float32 removes the difference.
            found = self.rescore(row).astype(np.float32).astype(np.float64) if self.rescore else row
            found[left_out] = -np.inf
            yield found, row

    def nearest(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the `count` nearest rows of each query and their scores before `rescore`. See `Database.nearest`."""
        if self.own is None:
            return self.database.nearest(self.queries, count)
        return without_own(self.own, *self.database.nearest(self.queries, count + 1))

    def best(self, count: int) -> Iterator[FirstRows]:
        """Yields the first rows of each query's list, at most `count`."""
        if self.rescore:
            for scores, cosines in self._rescored():
                found = exact.best(scores, count, self.database.tie_order)
                yield FirstRows(found, scores[found], cosines[found])
        else:
            for rows, scores in zip(*self.nearest(count), strict=True):
                yield FirstRows(rows[rows >= 0], scores[rows >= 0], scores[rows >= 0])
