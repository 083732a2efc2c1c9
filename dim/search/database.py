"""What is searched. Its rows are named by number; `place`, that of `exact.places`, breaks ties between them."""

import mmap
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from dim.search import exact
from dim.search.nearest import Part, nearest
from dim.storage import at_once

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
        return ahead(self.parts)

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
        return self if self.vectors is not None else of_array(scratch(self, len(self.place)), self.place)


def of_array(vectors: np.ndarray, place: np.ndarray) -> Exact:
    """The database of the rows of `vectors` (N, D), float32 or float16, in memory or mapped from a file."""
    return Exact(slices(vectors), place, vectors)


def slices(vectors: np.ndarray) -> list[Part]:
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


def scratch(blocks: Iterable[np.ndarray], size: int) -> np.ndarray:
    """The rows of `blocks`, `size` in all, in a file of their own that is mapped to memory: float32 (size, D)."""
    with tempfile.TemporaryFile() as file:
        dimension = 0
        for block in blocks:
            dimension = block.shape[1]
            file.write(np.ascontiguousarray(block, np.float32).data)
        file.flush()
        return np.memmap(file, np.float32, "r", shape=(size, dimension))


def ahead(parts: Iterable[Part]) -> Iterator[np.ndarray]:
    """What is in `parts`, some loaded by threads while one is used."""
    return at_once(lambda part: part.load(), parts, _LOADED)
