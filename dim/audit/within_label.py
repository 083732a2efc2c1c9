"""The photos of a label that are nearest to given photos.

Tasks read the descriptors once for each group of given photos that fits into memory. Products are computed as in exact
search, so a likeness doesn't depend on how the photos are divided.
"""

from dataclasses import dataclass

import numpy as np

from dim.app.tasks import spread
from dim.audit.photos import AuditedPhotos, rows_in
from dim.search.exact import Part
from dim.search.exact_scores import on_grid

_ASKING = 8192  # given photos of one label that are compared at a time


@dataclass(frozen=True)
class _Asking:
    """The given photos, sorted by the `labels` (Q,) in which they look: `rows`, `vectors` (Q, D), and `crowded`."""

    rows: np.ndarray
    labels: np.ndarray
    vectors: np.ndarray
    crowded: np.ndarray
    count: int


def nearest(
    photos: AuditedPhotos, rows: np.ndarray, labels: np.ndarray, crowded: np.ndarray, count: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Finds for each photo `rows[q]` the `count` other photos of the label `labels[q]` with the largest c.

    `crowded` (N,) is r. It is 0 to compare by the cosine alone. See `evidence` for c and r.

    Returns:
        The photos, int64 (Q, count), best first, and their c. Where the label has fewer photos: −1 and −inf.
    """
    found = np.full((len(rows), count), -1), np.full((len(rows), count), -np.inf)
    by_label = np.argsort(labels, kind="stable")
    for start in range(0, len(rows), photos.most_rows):
        some = by_label[start : start + photos.most_rows]
        vectors = on_grid(photos.database.take(rows[some]))
        asking = _Asking(rows[some], labels[some], vectors, crowded[rows[some]], count)
        best = _nothing(asking)
        tasks = spread(
            _nearest_in, photos.units, (photos.labels, crowded, asking), workers=photos.workers, stage="summing",
            size=rows_in, unit="images",
        )  # fmt: skip
        for _, other in tasks:
            best = _best(count, *map(np.hstack, zip(best, other, strict=True)))
        for kept, new in zip(found, best, strict=True):
            kept[some] = new
    return found


def _nothing(asking: _Asking) -> tuple[np.ndarray, np.ndarray]:
    shape = len(asking.rows), asking.count
    return np.full(shape, -1), np.full(shape, -np.inf)


def _nearest_in(
    unit: list[Part], labels: np.ndarray, crowded: np.ndarray, asking: _Asking
) -> tuple[np.ndarray, np.ndarray]:
    """Does what `nearest` does, among the photos of a unit."""
    rows, likeness = _nothing(asking)
    for part in unit:
        own = labels[part.start : part.start + part.size]
        place = np.minimum(np.searchsorted(asking.labels, own), len(asking.labels) - 1)
        asked = np.flatnonzero(asking.labels[place] == own)
        if not len(asked):
            continue
        asked = asked[np.argsort(own[asked], kind="stable")]
        vectors = on_grid(part.load()[asked])
        present, starts = np.unique(own[asked], return_index=True)
        for label, start, stop in zip(present, starts, [*starts[1:], len(asked)], strict=True):
            members = part.start + asked[start:stop]
            first, last = (int(np.searchsorted(asking.labels, label, side)) for side in ("left", "right"))
            for begin in range(first, last, _ASKING):
                those = slice(begin, min(begin + _ASKING, last))
                found = 2 * (asking.vectors[those] @ vectors[start:stop].T) - crowded[members]
                found -= asking.crowded[those, None]
                found[asking.rows[those, None] == members] = -np.inf
                candidates = np.where(np.isfinite(found), members, -1)
                both = np.hstack([rows[those], candidates]), np.hstack([likeness[those], found])
                rows[those], likeness[those] = _best(asking.count, *both)
    return rows, likeness


def _best(count: int, rows: np.ndarray, likeness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The `count` best of each line of `rows` and `likeness` (Q, M). Of equal ones, the lower row comes first."""
    order = np.lexsort((rows, -likeness), axis=1)[:, :count]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(likeness, order, axis=1)
