"""The nearest neighbours of all photos of an audit: exact ones, or those that a FAISS index proposes (`--candidates`).

An exact search compares all pairs of photos, so that ten times the photos take a hundred times the work. An index takes
little more than ten times the work, but misses some neighbours, and its scores are those of its codes.
"""

import logging
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from dim.app.tasks import spread
from dim.audit.photos import AuditedPhotos, rows_in, span
from dim.search import approximate, database, index_factory
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


def exact(photos: AuditedPhotos) -> Neighbours:
    """Finds the nearest neighbours by an exact search."""
    return Neighbours(*database.neighbours(photos.database, _count(photos)))


def by_index(photos: AuditedPhotos, factory: str, parameters: str | None) -> Neighbours:
    """Finds neighbours with a FAISS index of all photos, made by the string `factory`.

    `parameters` are FAISS's search parameters. Raises UserError if FAISS can't make or train this index.
    """
    index = _built(photos, factory, parameters)
    count = _count(photos)
    rows = np.empty((len(photos), count), np.int32)
    scores = np.empty((len(photos), count), np.float32)
    searches = spread(
        _searched, photos.units, (index, count), workers=photos.workers, stage="finding neighbours",
        size=rows_in, unit="images",
    )  # fmt: skip
    for position, (found, how_near) in searches:
        at = span(photos.units[position])
        rows[at], scores[at] = found, how_near
    return Neighbours(rows, scores, proposed=True)


def empty_index(factory: str, parameters: str | None, dimension: int) -> Any:
    """Makes the untrained index. Raises UserError if FAISS does not know the index or its search parameters."""
    return index_factory.proposing_index(factory, parameters, dimension, SEED)


def _count(photos: AuditedPhotos) -> int:
    return min(NEAREST, len(photos) - 1)


def _built(photos: AuditedPhotos, factory: str, parameters: str | None) -> Any:
    index = empty_index(factory, parameters, photos.parts[0].load().shape[1])
    if not index.is_trained:
        count = min(len(photos), index_factory.training_rows(index))
        drawn = np.sort(np.random.default_rng(SEED).choice(len(photos), count, replace=False))
        log.info("training the index on %d of %d rows", count, len(photos))
        index_factory.train(index, photos.database.take(drawn), f"--candidates {factory!r}")
    index_factory.add(index, photos.database, f"--candidates {factory!r}")
    return index


def _searched(unit: list[Part], index: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Searches the rows of `unit`. Returns the other rows that are found, and their scores, both (n, count)."""
    faiss.omp_set_num_threads(1)  # each CPU runs a task of its own
    found = []
    parameters = approximate.search_parameters(index, count + 1)
    for part in unit:
        vectors = part.load()
        for start in range(0, len(vectors), _ROWS):
            scores, rows = index.search(vectors[start : start + _ROWS], count + 1, params=parameters)
            own = np.arange(part.start + start, part.start + start + len(rows))
            rows[rows == own[:, None]] = -1
            scores[rows < 0] = -np.inf
            order = np.argsort(-scores, axis=1, kind="stable")[:, :count]  # without the photo itself, or the last row
            found.append((np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)))
    rows, scores = map(np.concatenate, zip(*found, strict=True))
    return rows.astype(np.int32), scores
