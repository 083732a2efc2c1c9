"""Search through an FAISS index that approximates."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from dim.errors import UserError
from dim.search import cosines
from dim.search.nearest import QUERIES

LISTED = 1000  # rows of a list that can be re-ranked


@dataclass(frozen=True)
class Approximate:
    """A `Database`, as in `dim.search.database`. Scores are what the index computes, in float32 or from codes."""

    index: Any
    place: np.ndarray

    def nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Database`. Rows are −1, and scores −inf, where the index finds fewer."""
        cosines.deepen(self.index, count)
        found, rows = self.index.search(np.ascontiguousarray(queries, np.float32), count)
        scores = np.where(rows >= 0, found.astype(np.float64), -np.inf)
        order = np.lexsort((self.place[rows], -scores), axis=1)
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def scores(self, queries: np.ndarray) -> Iterator[np.ndarray]:
        """See `Database`. A query's list has at most `LISTED` rows."""
        for start in range(0, len(queries), QUERIES):
            block = queries[start : start + QUERIES]
            for rows, scores in zip(*self.nearest(block, min(LISTED, len(self.place))), strict=True):
                listed = np.full(len(self.place), -np.inf)
                listed[rows[rows >= 0]] = scores[rows >= 0]
                yield listed

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Database`. Vectors are as the index's codes have them. Raises UserError where these can't be decoded."""
        inverted = faiss.try_extract_index_ivf(self.index)
        if inverted is not None:
            if isinstance(faiss.downcast_index(inverted), faiss.IndexIVFFastScan):
                raise UserError("an IVF index of fast-scan codes gives no vectors back; for --expansion, build another")
            inverted.make_direct_map()  # which does nothing the second time
        found: np.ndarray = self.index.reconstruct_batch(np.ascontiguousarray(rows, np.int64))
        return found

    def held(self) -> "Approximate":
        """See `Database`."""
        return self
