"""What a search runs on: a database of vectors, its nearest-neighbour lists, and a configured retrieval.

- `Database` gives every search the best rows, all scores, and the vectors of some rows. `Exact` implements it by exact
  search over parts on disk or in memory, `read_index.Approximate` by an FAISS index.
- `neighbours` searches a database with its own rows. Re-ranking and database augmentation work on these lists.
- `Retrieval` joins queries, a database and a rule that changes the scores. Each expansion method returns a changed one.

Rows of the database are identified by number. Image ids only break ties, through the database's `tie_order`.
"""

import mmap
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from dim.app.progress import Progress
from dim.io.storage import parallel_map
from dim.search import exact
from dim.search.exact import QUERIES, Part

PART_ROWS = 8192
_PREFETCHED = 4  # parts


class Database(Protocol):
    """L2-normalised vectors, N rows of D values, that can be searched."""

    @property
    def tie_order(self) -> np.ndarray:
        """The tie-break order of the rows, see `exact.tie_order_of`, (N,)."""

    def nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` best rows of each query and their scores, both (Q, count), in the form of `exact.nearest`."""

    def scores(self, queries: np.ndarray) -> Iterator[np.ndarray]:
        """Yields for each query the scores of all rows, float64 (N,); −inf for a row that was not found."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of `rows` (R,), float32 (R, D)."""

    def with_random_access(self) -> "Database":
        """The same database, on which many calls of `take` with few rows are fast."""


@dataclass(frozen=True)
class Exact:
    """A `Database` that is searched exactly. Its rows are in consecutive `parts`.

    `vectors` (N, D) are the same rows as one array, if they are in memory or mapped from a file.
    """

    parts: Sequence[Part]
    tie_order: np.ndarray
    vectors: np.ndarray | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """The rows part by part. Threads prefetch the next parts."""
        return prefetched(self.parts)

    def nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Database`."""
        return exact.nearest(queries, self.parts, self.tie_order, count)

    def scores(self, queries: np.ndarray) -> Iterator[np.ndarray]:
        """See `Database`."""
        return exact.scores(queries, self, len(self.tie_order))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Database`. Without `vectors`, each call loads every part that has one of the rows."""
        if self.vectors is not None:
            return np.asarray(self.vectors[rows], np.float32)
        wanted, back = np.unique(rows, return_inverse=True)
        found = []
        for part in self.parts:
            first, last = np.searchsorted(wanted, (part.start, part.start + part.size))
            if first < last:
                found.append(part.load()[wanted[first:last] - part.start])
        return np.concatenate(found)[back]

    def with_random_access(self) -> "Exact":
        """See `Database`. Without `vectors`, the parts are copied to a temporary file."""
        size = len(self.tie_order)
        return self if self.vectors is not None else from_array(temporary_file_of(self, size), self.tie_order)


def from_array(vectors: np.ndarray, tie_order: np.ndarray) -> Exact:
    """An exact database of `vectors` (N, D), float32 or float16, in memory or mapped from a file."""
    return Exact(parts_of(vectors), tie_order, vectors)


def parts_of(vectors: np.ndarray) -> list[Part]:
    """Splits the rows of `vectors` (N, D) into parts of `PART_ROWS` rows."""
    starts = range(0, len(vectors), PART_ROWS)
    return [Part(start, min(PART_ROWS, len(vectors) - start), partial(_load, vectors, start)) for start in starts]


def _load(vectors: np.ndarray, start: int) -> np.ndarray:
    part = vectors[start : start + PART_ROWS]
    mapped: Any = vectors.base
    if not isinstance(mapped, mmap.mmap):
        return np.asarray(part, np.float32)
    loaded = np.array(part, np.float32)
    mapped.madvise(mmap.MADV_DONTNEED)  # otherwise the pages count as memory of this process until it ends
    return loaded


def prefetched(parts: Iterable[Part]) -> Iterator[np.ndarray]:
    """Yields the rows of each part, while threads load the next parts."""
    return parallel_map(lambda part: part.load(), parts, _PREFETCHED)


def temporary_file_of(blocks: Iterable[np.ndarray], size: int) -> np.ndarray:
    """Writes `blocks` (n, D) to a temporary file, which lives as long as the array returned: float32 (size, D)."""
    with tempfile.TemporaryFile() as file:
        dimension = 0
        for block in blocks:
            dimension = block.shape[1]
            file.write(np.ascontiguousarray(block, np.float32).data)
        file.flush()
        return np.memmap(file, np.float32, "r", shape=(size, dimension))


def neighbours(database: Database, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds for each row of the database the k nearest other rows, int64 (N, k), and their scores, float64 (N, k).

    If fewer are found, the remaining entries are −1 and −inf.
    """
    _, rows, scores = zip(*neighbour_blocks(database, k), strict=True)
    return np.concatenate(rows), np.concatenate(scores)


def neighbour_blocks(database: Database, k: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields for each block of rows their vectors (n, D), and `neighbours` of these rows: rows and scores (n, k)."""
    size = len(database.tie_order)
    progress = Progress("finding neighbours", size)
    for start in range(0, size, QUERIES):
        own = np.arange(start, min(start + QUERIES, size))
        vectors = database.take(own)
        yield vectors, *_without_own(own, *database.nearest(vectors, k + 1))
        progress.add(len(own))


def _without_own(own: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Removes one row from each list, `own` (n,) or else the last one: `rows` and `scores` (n, k + 1) → (n, k)."""
    other = (rows != own[:, None]) | (rows < 0)
    other[other.all(axis=1), -1] = False  # a list may lack the own row, such as when k + 1 others equal it
    kept = len(rows), rows.shape[1] - 1
    return rows[other].reshape(kept), scores[other].reshape(kept)


@dataclass(frozen=True)
class Retrieval:
    """A search that is ready to run.

    Args:
        queries: L2-normalised vectors, (Q, D).
        database: The database to search.
        rescore: Maps a query's scores to the scores that order its list, both (N,), −inf for a row not in the list.
        own: For each query the database row that its list and its neighbours leave out, (Q,); −1 leaves out none.
    """

    queries: np.ndarray
    database: Database
    rescore: Callable[[np.ndarray], np.ndarray] | None = None
    own: np.ndarray | None = None

    def scores(self) -> Iterator[np.ndarray]:
        """Yields for each query the final scores of all database rows, (N,); −inf for a row that is not in its list."""
        own_rows = [-1] * len(self.queries) if self.own is None else self.own.tolist()
        for own, row in zip(own_rows, self.database.scores(self.queries), strict=True):
            left_out = slice(own, own + 1) if own >= 0 else slice(0)
            row[left_out] = -np.inf
            # The order of rows may change the last bits of a new score; rounding to float32 removes the difference.
            found = self.rescore(row).astype(np.float32).astype(np.float64) if self.rescore else row
            found[left_out] = -np.inf
            yield found

    def nearest(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` nearest rows of each query and their scores before `rescore`, as `Database.nearest` does."""
        if self.own is None:
            return self.database.nearest(self.queries, count)
        return _without_own(self.own, *self.database.nearest(self.queries, count + 1))

    def best(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields for each query the first rows of its list, at most `count`, and their final scores."""
        if self.rescore:
            for row in self.scores():
                found = exact.best(row, count, self.database.tie_order)
                yield found, row[found]
        else:
            for rows, scores in zip(*self.nearest(count), strict=True):
                yield rows[rows >= 0], scores[rows >= 0]
