"""The sum of the descriptors of each label of an audit, in slices of labels that fit into memory.

The sums of K labels take 8 · K · D bytes. If that is more than a process may hold, the labels are divided into slices,
and all descriptors are read once for each slice, whenever its sums are needed. The components are first rounded to
multiples of 1 / `exact_scores.GRID`. Then float64 holds the sums exactly, whatever the order of additions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dim.app.tasks import spread
from dim.audit.photos import NONE, AuditedPhotos, rows_in
from dim.errors import UserError
from dim.mine.pool import is_unit
from dim.search.exact import Part
from dim.search.exact_scores import on_grid

LABELS = 4096  # a slice has a multiple of so many labels; a block of the matrix product of `evidence` has so many


@dataclass(frozen=True)
class LabelSums:
    """The sums s_l of the descriptors of K labels, and what the means of an audit need.

    `counts` (K,) are the photos of each label, and `squares` (K,) is |s_l|². `total` (D,) is the sum of the descriptors
    of all labels, and `lengths` the sum of their squared norms. `last` holds the slice that was summed last.
    """

    photos: AuditedPhotos
    counts: np.ndarray
    squares: np.ndarray
    total: np.ndarray
    lengths: float
    last: tuple[slice, np.ndarray]

    def slices(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields each slice of the labels, and the sums of its labels, float64 (L, D)."""
        for some in _slices(self.photos, len(self.counts)):
            yield self.last if some == self.last[0] else (some, _summed(self.photos, some)[0])


def of(photos: AuditedPhotos) -> LabelSums:
    """Sums the descriptors of the photos that have a label. Raises UserError if one isn't L2-normalised."""
    counts = np.bincount(photos.labels[photos.labels != NONE])
    squares, total, lengths = np.zeros(len(counts)), np.zeros(photos.dimension), 0.0
    for some in _slices(photos, len(counts)):
        sums, length = _summed(photos, some)
        squares[some] = np.einsum("ij,ij->i", sums, sums)
        total += sums.sum(axis=0)
        lengths += length
    return LabelSums(photos, counts, squares, total, lengths, (some, sums))


def _slices(photos: AuditedPhotos, labels: int) -> list[slice]:
    step = max(1, photos.most_rows // LABELS) * LABELS
    return [slice(first, min(first + step, labels)) for first in range(0, labels, step)]


def _summed(photos: AuditedPhotos, some: slice) -> tuple[np.ndarray, float]:
    """The sums of the labels of the slice `some`, (L, D), and the sum of the squared norms of their descriptors."""
    sums = np.zeros((some.stop - some.start, photos.dimension))
    lengths = np.zeros(len(photos.units))
    tasks = spread(
        _sums_of_unit, photos.units, (photos.labels, some.start, some.stop), workers=photos.workers, stage="summing",
        size=rows_in, unit="images",
    )  # fmt: skip
    for position, (parts, length) in tasks:
        lengths[position] = length
        for labels, part in parts:
            sums[labels - some.start] += part
    return sums, float(lengths.sum())


def _sums_of_unit(
    unit: list[Part], codes: np.ndarray, first: int, stop: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], float]:
    """Sums the descriptors in `unit` of the labels from `first` to `stop` − 1.

    Returns the labels and their sums for each part, and the sum of the squared norms.
    """
    found, length = [], 0.0
    for part in unit:
        own = codes[part.start : part.start + part.size]
        used = np.flatnonzero((own >= first) & (own < stop))
        if not len(used):
            continue
        order = used[np.argsort(own[used], kind="stable")]
        vectors = on_grid(part.load()[order])
        squares = np.einsum("ij,ij->i", vectors, vectors)
        if len(wrong := squares[~is_unit(np.abs(squares - 1))]):
            raise UserError(
                f"a descriptor has the length {wrong[0] ** 0.5:.4f}, not 1, as have {len(wrong) - 1} others beside it; "
                "extract them again"
            )
        length += float(squares.sum())
        labels, starts = np.unique(own[order], return_index=True)
        found.append((labels, np.add.reduceat(vectors, starts, axis=0)))
    return found, length
