"""The best rows of each query, kept while a database is searched block by block.

Lists are ordered by (−score, tie-break order), so the rows that are kept don't depend on the order of the blocks.
"""

import numpy as np


class BestRows:
    """The best `count` rows of each of `size` queries among those inserted so far.

    Attributes:
        rows: int64 (size, count), best first. −1 stands for no row.
        scores: The scores of `rows`, float64 (size, count). Where there is no row, −inf.
    """

    def __init__(self, size: int, count: int, tie_order: np.ndarray) -> None:
        """`tie_order` (N,) has the tie-break order of the database rows."""
        self._tie_order = tie_order
        self.rows = np.full((size, count), -1, np.int64)
        self.scores = np.full((size, count), -np.inf)

    def merge(self, first: int, rows: np.ndarray, scores: np.ndarray) -> None:
        """Inserts lists, (n, count), of the queries `first` to `first` + n − 1. In `rows`, −1 stands for no row."""
        worst = self.scores[first : first + len(rows), -1:]
        queries, columns = np.nonzero((rows >= 0) & (scores >= worst))
        self.insert(queries + first, rows[queries, columns], scores[queries, columns])

    def insert(self, queries: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> None:
        """Inserts the row `rows[p]` with the score `scores[p]` into the list of the query `queries[p]`, for each p.

        `queries` must be in ascending order.
        """
        touched, starts, lengths = np.unique(queries, return_index=True, return_counts=True)
        count, width = self.rows.shape[1], int(lengths.max(initial=0))
        at = np.repeat(np.arange(len(touched)), lengths), np.arange(len(rows)) - np.repeat(starts, lengths)
        all_rows = np.hstack([self.rows[touched], np.full((len(touched), width), -1)])
        all_scores = np.hstack([self.scores[touched], np.full((len(touched), width), -np.inf)])
        all_rows[:, count:][at], all_scores[:, count:][at] = rows, scores
        order = np.argsort(-all_scores, axis=1)[:, : count + 1]
        found = np.take_along_axis(all_scores, order, axis=1)
        tied = ((found[:, 1:] == found[:, :-1]) & np.isfinite(found[:, 1:])).any(axis=1)
        # A sort by two keys is slow, and few lists need it.
        places = self._tie_order[all_rows[tied]]
        order[tied] = np.lexsort((places, -all_scores[tied]), axis=1)[:, : count + 1]
        self.rows[touched] = np.take_along_axis(all_rows, order[:, :count], axis=1)
        self.scores[touched] = np.take_along_axis(all_scores, order[:, :count], axis=1)


def reached(products: np.ndarray, count: int) -> np.ndarray:
    """A product that at least `count` of a query's `products` (Q, n) reach, near the largest such, float64 (Q,)."""
    # The maxima of groups suffice, and a partition of few maxima is much faster than one of all products.
    width = max(8 * count, 256)
    if groups := products.shape[1] // width:
        products = products[:, : groups * width].reshape(len(products), groups, width).max(axis=1)
    found: np.ndarray = np.partition(products, -count, axis=1)[:, -count].astype(np.float64)
    return found
