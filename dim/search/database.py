"""Databases of vectors, the nearest neighbours of their rows, and retrievals.

- A `Database` finds the best rows for queries, computes the scores of all rows, and returns the vectors of given rows.
  `Exact` searches exactly, in parts on disk or in memory. `read_index.Approximate` searches with an FAISS index.
- `neighbours` finds the nearest other rows of each row. Re-ranking and database augmentation use the result.

A row is identified by its number in the database. Image ids only decide the order of equal scores (see `tie_order`).
"""

import logging
import mmap
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dim.app.progress import Progress
from dim.errors import UserError
from dim.io.storage import parallel_map
from dim.search import exact, exact_scores
from dim.search.exact import Part

log = logging.getLogger(__name__)

PART_ROWS = 8192  # rows per part of an array
_PREFETCHED = 4  # most parts that threads load ahead
# `neighbour_blocks` searches for this many rows at a time, or for fewer if their lists have more entries than these.
_WINDOW_ROWS, _WINDOW_ENTRIES = 2**15, 2**24


class Database(Protocol):
    """A database that can be searched. It has N rows, L2-normalised vectors of D values."""

    @property
    def tie_order(self) -> np.ndarray:
        """The tie-break order of the rows, from `exact.tie_order_of`, (N,)."""

    def nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the `count` best rows of each query. Returns rows and scores, (Q, count), as `exact.nearest` does."""

    def scores(self, queries: np.ndarray) -> Iterator[np.ndarray]:
        """Yields one array per query: the scores of all rows, float64 (N,). A row that was not found has −inf."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns the vectors of `rows` (R,), float32 (R, D)."""

    def with_random_access(self) -> "Database":
        """Returns the same database in a form whose `take` is fast even if each call asks for few rows."""


@dataclass(frozen=True)
class Exact:
    """A `Database` that is searched exactly. Its rows are in consecutive `parts`.

    `vectors` (N, D) is the array of all rows, or None if the rows are neither in memory nor mapped from one file. At
    most `workers` parts are searched at a time, by default one for each CPU, and each by a task with `gpus` GPUs (see
    `exact.nearest`).
    """

    parts: Sequence[Part]
    tie_order: np.ndarray
    vectors: np.ndarray | None = None
    workers: int | None = None
    gpus: float | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the rows part by part, while threads load the next parts."""
        return prefetched(self.parts)

    def nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Database`."""
        return exact.nearest(queries, self.parts, self.tie_order, count, self.workers, gpus=self.gpus)

    def scores(self, queries: np.ndarray) -> Iterator[np.ndarray]:
        """See `Database`."""
        return exact_scores.scores(queries, self, len(self.tie_order))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Database`. If `vectors` is None, each call loads all parts that contain any of the rows."""
        if self.vectors is not None:
            return np.asarray(self.vectors[rows], np.float32)
        return taken(self.parts, rows)

    def with_random_access(self) -> "Exact":
        """See `Database`. If `vectors` is None, the parts are copied to a temporary file."""
        size = len(self.tie_order)
        return self if self.vectors is not None else from_array(temporary_file_of(self, size), self.tie_order)


def from_array(vectors: np.ndarray, tie_order: np.ndarray) -> Exact:
    """Makes an exact database of `vectors` (N, D), float32 or float16, in memory or mapped from a file."""
    return Exact(parts_of(vectors), tie_order, vectors)


def parts_of(vectors: np.ndarray) -> list[Part]:
    """Splits the rows of `vectors` (N, D) into parts of `PART_ROWS` rows."""
    starts = range(0, len(vectors), PART_ROWS)
    return [Part(start, min(PART_ROWS, len(vectors) - start), _ArrayRows(vectors, start)) for start in starts]


@dataclass(frozen=True)
class _ArrayRows:
    """Loads `PART_ROWS` rows of `vectors` (N, D), from row `start` on. Only these rows are sent to another process."""

    vectors: np.ndarray
    start: int

    def __call__(self) -> np.ndarray:
        part = self.vectors[self.start : self.start + PART_ROWS]
        mapped: Any = self.vectors.base
        if not isinstance(mapped, mmap.mmap):
            return np.asarray(part, np.float32)
        loaded = np.array(part, np.float32)
        release(self.vectors)
        return loaded

    def __reduce__(self) -> tuple[type, tuple[np.ndarray, int]]:
        return _ArrayRows, (np.array(self.vectors[self.start : self.start + PART_ROWS]), 0)


def release(vectors: np.ndarray) -> None:
    """Takes the pages of `vectors`, mapped from a file, out of the memory of this process. The file keeps them."""
    mapped: Any = vectors.base
    if isinstance(mapped, mmap.mmap):
        mapped.madvise(mmap.MADV_DONTNEED)


def taken(parts: Sequence[Part], rows: np.ndarray) -> np.ndarray:
    """Returns the vectors of `rows` (R,), one or more, float32 (R, D). Loads each part that has any of them once."""
    order = np.argsort(rows)
    places = np.split(order, np.searchsorted(rows[order], [part.start for part in parts[1:]]))
    needed = [(part, place) for part, place in zip(parts, places, strict=True) if len(place)]
    found = np.empty((0, 0), np.float32)
    for (part, place), block in zip(needed, prefetched([part for part, _ in needed]), strict=True):
        if not len(found):
            found = np.empty((len(rows), block.shape[1]), np.float32)
        found[place] = block[rows[place] - part.start]
    return found


def prefetched(parts: Iterable[Part]) -> Iterator[np.ndarray]:
    """Yields the rows of each part, while threads load the next parts."""
    return parallel_map(lambda part: part.load(), parts, _PREFETCHED)


def temporary_file_of(blocks: Iterable[np.ndarray], size: int) -> np.ndarray:
    """Copies `blocks` (n, D) to an array float32 (size, D) in a temporary file. The file lasts as long as the array.

    Raises UserError if the disk of temporary files has no room for it.
    """
    with tempfile.TemporaryFile() as file:
        dimension = 0
        for block in blocks:
            if not dimension:
                dimension = block.shape[1]
                require_room(4 * size * dimension)
            file.write(np.ascontiguousarray(block, np.float32).data)
        file.flush()
        return np.memmap(file, np.float32, "r", shape=(size, dimension))


def require_room(wanted: int) -> None:
    """Raises UserError if the disk of temporary files has less room than `wanted` bytes."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if wanted > free:
        has = f"but {folder!r} has {free:,} bytes left; set TMPDIR to a folder on a larger disk"
        raise UserError(f"the descriptors need a temporary file of {wanted:,} bytes, {has}")
    log.info("copying descriptors to a temporary file of %d MB", wanted // 10**6)


def neighbours(database: Database, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k nearest other rows of each database row. Returns rows, int64 (N, k), and scores, float64 (N, k).

    If fewer than k rows are found, the remaining entries are −1 in the rows and −inf in the scores.
    """
    _, rows, scores = zip(*neighbour_blocks(database, k), strict=True)
    return np.concatenate(rows), np.concatenate(scores)


def neighbour_blocks(database: Database, k: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields three arrays per block of n rows: vectors (n, D), nearest other rows (n, k), and their scores (n, k).

    A block has `_WINDOW_ROWS` rows or fewer, so the memory doesn't depend on the size of the database.
    """
    size = len(database.tie_order)
    progress = Progress("finding neighbours", size)
    step = max(1, min(_WINDOW_ROWS, _WINDOW_ENTRIES // (k + 1)))
    for start in range(0, size, step):
        own = np.arange(start, min(start + step, size))
        vectors = database.take(own)
        yield vectors, *without_own(own, *database.nearest(vectors, k + 1))
        progress.add(len(own))


def without_own(own: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shortens `rows` and `scores` from (n, k + 1) to (n, k). List i loses `own[i]` or, without it, the last row."""
    other = (rows != own[:, None]) | (rows < 0)
    other[other.all(axis=1), -1] = False  # a list lacks `own` if, for example, k + 1 others equal it
    kept = len(rows), rows.shape[1] - 1
    return rows[other].reshape(kept), scores[other].reshape(kept)
