"""The nearest neighbours of all photos of an audit: exact ones, or those that a FAISS index proposes (`--candidates`).

An exact search compares all pairs of photos, so that ten times the photos take a hundred times the work. An index takes
little more than ten times the work, but misses some neighbours, and its scores are those of its codes.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from dim.app.tasks import spread
from dim.audit.photos import AuditedPhotos, rows_in, span
from dim.search import approximate, database, exact, index_factory
from dim.search.best_rows import BestRows
from dim.search.exact import Part

NEAREST = 10  # neighbours per photo
SEED = 0  # of the sample that trains the index
_ROWS = 1024  # rows that are searched at a time

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Neighbours:
    """The nearest other photos of each photo, best first: their `rows` and `scores`, both (N, k).

    If fewer than k are found, the remaining entries are −1 in the rows and −inf in the scores. `proposed` says whether
    an index found them. Then the scores are approximate, and a photo may lack near ones.
    """

    rows: np.ndarray
    scores: np.ndarray
    proposed: bool = False


def by_comparison(photos: AuditedPhotos) -> Neighbours:
    """Finds the nearest neighbours by an exact search."""
    return Neighbours(*database.neighbours(photos.database, _count(photos)))


def by_index(photos: AuditedPhotos, factory: str, parameters: str | None) -> Neighbours:
    """Finds neighbours with a FAISS index of all photos, made by the string `factory`.

    The index has as many parts as the memory asks for; one after the other is filled and searched. `parameters` are
    FAISS's search parameters. Raises UserError if FAISS can't make or train this index.
    """
    empty = _trained(photos, factory, parameters)
    count = _count(photos)
    best = BestRows(len(photos), count, photos.tie_order)
    for part in _index_parts(photos, empty):
        index = faiss.deserialize_index(empty)
        index_factory.add(index, (one.load() for one in part), f"--candidates {factory!r}")
        searches = spread(
            _searched, photos.units, (index, part[0].start, count), workers=photos.workers,
            stage="finding neighbours", size=rows_in, unit="images",
        )  # fmt: skip
        for position, found in searches:
            best.merge(span(photos.units[position]).start, *found)
    return Neighbours(best.rows, best.scores, proposed=True)


def empty_index(factory: str, parameters: str | None, dimension: int) -> Any:
    """Makes the untrained index. Raises UserError if FAISS does not know the index or its search parameters."""
    return index_factory.proposing_index(factory, parameters, dimension, SEED)


def _count(photos: AuditedPhotos) -> int:
    return min(NEAREST, len(photos) - 1)


def _trained(photos: AuditedPhotos, factory: str, parameters: str | None) -> np.ndarray:
    """Trains an empty index on a sample of the photos. Returns the serialised index, uint8 (bytes,)."""
    index = empty_index(factory, parameters, photos.dimension)
    if not index.is_trained:
        count = min(len(photos), index_factory.training_rows(index))
        drawn = np.sort(np.random.default_rng(SEED).choice(len(photos), count, replace=False))
        log.info("training the index on %d of %d rows", count, len(photos))
        index_factory.train(index, photos.database.take(drawn), f"--candidates {factory!r}")
    serialised: np.ndarray = faiss.serialize_index(index)
    return serialised


def _index_parts(photos: AuditedPhotos, empty: np.ndarray) -> Iterator[list[Part]]:
    """Yields the photos of each part of the index. A process holds a part, and a copy of it while it is read."""
    bytes_of_all = index_factory.estimated_bytes(faiss.deserialize_index(empty), len(photos))
    count = max(1, math.ceil(bytes_of_all / (photos.share / 2)))
    return exact.grouped(photos.parts, math.ceil(len(photos) / count))


def _searched(unit: list[Part], index: Any, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Searches a part of the index, with the photos from row `first` on, for the photos of `unit`.

    Returns the rows that are found, with −1 for the photo itself, and their scores, both (n, count + 1).
    """
    faiss.omp_set_num_threads(1)  # each CPU runs a task of its own
    found = []
    parameters = approximate.search_parameters(index, count + 1)
    for part in unit:
        vectors = part.load()
        for start in range(0, len(vectors), _ROWS):
            scores, rows = index.search(vectors[start : start + _ROWS], count + 1, params=parameters)
            own = np.arange(part.start + start, part.start + start + len(rows))
            rows = np.where(rows < 0, -1, rows + first)
            rows[rows == own[:, None]] = -1
            scores[rows < 0] = -np.inf
            found.append((rows.astype(np.int32), scores))
    rows, scores = map(np.concatenate, zip(*found, strict=True))
    return rows, scores
