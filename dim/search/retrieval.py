"""A search that has been set up: queries, a database, and what is to be done with each query's scores."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dim.search import exact
from dim.search.database import Database
from dim.search.neighbours import without


@dataclass(frozen=True)
class Retrieval:
    """`queries` (Q, D) are L2-normalised. `rescore` maps the scores of a query, (N,) and −inf where a row is not in its
    list, to those that it is ranked by. `own` (Q,) is the row of the database that leaves each query's list, −1 where
    none does; it is no neighbour of the query either.
    """

    queries: np.ndarray
    database: Database
    rescore: Callable[[np.ndarray], np.ndarray] | None = None
    own: np.ndarray | None = None

    def scores(self) -> Iterator[np.ndarray]:
        """For each query the scores of all rows of the database, (N,); −inf where a row is not in its list."""
        for own, row in zip(self._own(), self.database.scores(self.queries), strict=True):
            left = slice(own, own + 1) if own >= 0 else slice(0)
            row[left] = -np.inf
            # What differs only by the order of a sum, which is that of the rows, is made a tie.
            found = self.rescore(row).astype(np.float32).astype(np.float64) if self.rescore else row
            found[left] = -np.inf
            yield found

    def nearest(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` rows nearest to each query and their scores, before `rescore`, as `Database.nearest` has them."""
        if self.own is None:
            return self.database.nearest(self.queries, count)
        return without(self.own, *self.database.nearest(self.queries, count + 1))

    def best(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each query the rows that head its list, `count` or fewer, and their scores."""
        if self.rescore:
            for row in self.scores():
                found = exact.best(row, count, self.database.place)
                yield found, row[found]
        else:
            for rows, scores in zip(*self.nearest(count), strict=True):
                yield rows[rows >= 0], scores[rows >= 0]

    def _own(self) -> list[int]:
        return [-1] * len(self.queries) if self.own is None else self.own.tolist()
