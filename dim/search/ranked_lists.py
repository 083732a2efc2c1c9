"""The rows of ranked.parquet: the first photos of each query's list."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from dim.app.progress import Progress
from dim.data.manifest import BOX
from dim.localise.rerank import Reranked, Reranker
from dim.search.database import release
from dim.search.exact import QUERIES
from dim.search.queries import Queries
from dim.search.retrieval import FirstRows, Retrieval

_COLUMNS = [("query_id", pa.string()), ("rank", pa.int64()), ("image_id", pa.string()), ("score", pa.float64())]
# Memory of a query that is searched: copies of its vector, and bytes of an entry in its list.
_COPIES, _ENTRY = 8, 200


@dataclass(frozen=True)
class RankedLists:
    """The lists of the queries `asked`, with the first `top` of the photos `ids` (N,) that `retrieval` finds for each.

    `reranker` ranks the first photos again, if it is given.
    """

    asked: Queries
    ids: pa.ChunkedArray
    retrieval: Retrieval
    top: int
    reranker: Reranker | None = None

    @property
    def schema(self) -> pa.Schema:
        """The columns. If the score isn't the cosine, there is a column of cosines, too."""
        columns = list(_COLUMNS)
        if self.reranker or self.retrieval.rescore:
            columns.append(("cosine", pa.float64()))
        if self.reranker:
            columns += [("inliers", pa.int64()), *((side, pa.float64()) for side in BOX)]
        return pa.schema(columns)

    def tables(self, memory: int) -> Iterator[pa.Table]:
        """Yields the rows, the lists of as many queries at a time as fit into `memory` bytes."""
        asked, size = self.asked, len(self.asked.ids)
        deepest = max(self.top, min(self.reranker.how.first, len(self.ids))) if self.reranker else self.top
        each = _COPIES * 4 * asked.vectors.shape[1] + _ENTRY * deepest
        each += self.reranker.query_bytes if self.reranker else 0
        fitting = max(1, memory // each)
        # FAISS's scores may depend in their last bits on which queries are searched together. So blocks of QUERIES stay
        # together, unless lists are so long that a block doesn't fit.
        step = fitting // QUERIES * QUERIES or fitting
        progress = Progress("searching", size, "queries")
        for start in range(0, size, step):
            some = replace(self.retrieval, queries=np.array(self.retrieval.queries[start : start + step]))
            release(asked.vectors)
            heads: Sequence[FirstRows | Reranked] = list(some.best(deepest))
            if self.reranker:
                numbers = np.arange(start, start + len(heads))
                heads = self.reranker(numbers, [(head.rows, head.scores) for head in heads])
            yield self._table(asked.ids.slice(start, step), heads)
            progress.add(len(heads))

    def _table(self, query_ids: pa.ChunkedArray, heads: Sequence[FirstRows | Reranked]) -> pa.Table:
        """Makes the rows of the queries `query_ids` from the heads of their lists."""
        lengths = [min(self.top, len(head.rows)) for head in heads]

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(head, name)[: self.top] for head in heads])

        columns = {
            "query_id": query_ids.take(np.repeat(np.arange(len(heads)), lengths)),
            "rank": np.concatenate([np.arange(1, length + 1) for length in lengths]),
            "image_id": self.ids.take(joined("rows")),
            "score": joined("scores"),
        }
        if "cosine" in self.schema.names:
            columns["cosine"] = pa.array(joined("cosines"), mask=~np.isfinite(joined("cosines")))
        if self.reranker:
            columns["inliers"] = joined("inliers")
            columns |= {
                side: pa.array(values, from_pandas=True) for side, values in zip(BOX, joined("boxes").T, strict=True)
            }
        return pa.table(columns, self.schema)
