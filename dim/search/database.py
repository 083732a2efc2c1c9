"""What is searched. Its rows are named by number; `place`, that of `exact.places`, breaks ties between them.

The nearest neighbours of the database's own rows: the graph on which it is augmented and re-ranked.

A search that has been set up: queries, a database, and what is to be done with each query's scores.
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
from dim.search.exact import QUERIES, Part, nearest

PART_ROWS = 8192
_LOADED = 4  # parts that are loaded ahead


class Database(Protocol):
    """Searched exactly (`Exact`) or through an index that approximates (`approximate.Approximate`)."""

    @property
    def place(self) -> np.ndarray:
        """The place of each row in the order of ids, int64 (N,)."""

    def nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` best rows of each query and their scores, as `nearest.nearest` returns them."""

    def scores(self, queries: np.ndarray) -> Iterator[np.ndarray]:
        """For each query the scores of all rows, float64 (N,); −inf where a row is not in its list at all."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of `rows` (R,), float32 (R, D)."""

    def held(self) -> "Database":
        """The same, with rows that `take` finds one by one."""


@dataclass(frozen=True)
class Exact:
    """`parts` follow each other; `vectors` (N, D) are the same rows where they are in memory or mapped from a file."""

    parts: Sequence[Part]
    place: np.ndarray
    vectors: np.ndarray | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """The rows part by part; some of the next are loaded while one is used."""
        return prefetched(self.parts)

    def nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Database`."""
        return nearest(queries, self.parts, self.place, count)

    def scores(self, queries: np.ndarray) -> Iterator[np.ndarray]:
        """See `Database`."""
        return exact.scores(queries, self, len(self.place))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Database`."""
        if self.vectors is not None:
            return np.asarray(self.vectors[rows], np.float32)
        wanted, back = np.unique(rows, return_inverse=True)
        found = []
        for part in self.parts:
            first, last = np.searchsorted(wanted, (part.start, part.start + part.size))
            if first < last:
                found.append(part.load()[wanted[first:last] - part.start])
        return np.concatenate(found)[back]

    def held(self) -> "Exact":
        """See `Database`. Parts are copied to a file that is gone when it is no longer used."""
        return self if self.vectors is not None else from_array(temporary_file_of(self, len(self.place)), self.place)


def from_array(vectors: np.ndarray, place: np.ndarray) -> Exact:
    """The database of the rows of `vectors` (N, D), float32 or float16, in memory or mapped from a file."""
    return Exact(parts_of(vectors), place, vectors)


def parts_of(vectors: np.ndarray) -> list[Part]:
    """The rows of `vectors` in parts."""
    starts = range(0, len(vectors), PART_ROWS)
    return [Part(start, min(PART_ROWS, len(vectors) - start), partial(_slice, vectors, start)) for start in starts]


def _slice(vectors: np.ndarray, start: int) -> np.ndarray:
    part = vectors[start : start + PART_ROWS]
    mapped: Any = vectors.base
    if not isinstance(mapped, mmap.mmap):
        return np.asarray(part, np.float32)
    loaded = np.array(part, np.float32)
    mapped.madvise(mmap.MADV_DONTNEED)  # or all that was ever loaded would count as this process's memory
    return loaded


def temporary_file_of(blocks: Iterable[np.ndarray], size: int) -> np.ndarray:
    """The rows of `blocks`, `size` in all, in a file of their own that is mapped to memory: float32 (size, D)."""
    with tempfile.TemporaryFile() as file:
        dimension = 0
        for block in blocks:
            dimension = block.shape[1]
            file.write(np.ascontiguousarray(block, np.float32).data)
        file.flush()
        return np.memmap(file, np.float32, "r", shape=(size, dimension))


def prefetched(parts: Iterable[Part]) -> Iterator[np.ndarray]:
    """What is in `parts`, some loaded by threads while one is used."""
    return parallel_map(lambda part: part.load(), parts, _LOADED)


def neighbour_blocks(database: Database, k: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
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


def neighbours(database: Database, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k other rows nearest to each row, int64 (N, k), and their scores, (N, k), of `blocks_of_others`."""
    _, rows, scores = zip(*neighbour_blocks(database, k), strict=True)
    return np.concatenate(rows), np.concatenate(scores)


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
