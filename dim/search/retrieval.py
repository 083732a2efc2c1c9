"""A search that has been set up: queries, a database, and what is to be done with each query's scores."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dim.search import exact
from dim.search.database import Database


@dataclass(frozen=True)
class Retrieval:
    """`queries` (Q, D) are L2-normalised. `rescore` maps the scores of a query, (N,) and −inf where a row is not in its
    list, to those that it is ranked by.
    """

    queries: np.ndarray
    database: Database
    rescore: Callable[[np.ndarray], np.ndarray] | None = None

    def scores(self) -> Iterator[np.ndarray]:
        """For each query the scores of all rows of the database, (N,)."""
        for row in self.database.scores(self.queries):
            # What differs only by the order of a sum, which is that of the rows, is made a tie.
            yield self.rescore(row).astype(np.float32).astype(np.float64) if self.rescore else row

    def best(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each query the rows that head its list, `count` or fewer, and their scores."""
        if self.rescore:
            for row in self.scores():
                found = exact.best(row, count, self.database.place)
                yield found, row[found]
        else:
            for rows, scores in zip(*self.database.nearest(self.queries, count), strict=True):
                yield rows[rows >= 0], scores[rows >= 0]
