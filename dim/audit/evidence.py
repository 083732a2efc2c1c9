"""Computes the evidence of a label for a photo: how much the photo resembles the photos that have the label.

The similarity of two photos i and j is c_ij = 2 x_iᵀx_j − r_i − r_j (CSLS: Conneau et al., arXiv 1710.04087). Here x_i
is the descriptor of photo i, and the crowding r_i is the mean inner product of x_i with its ten nearest neighbours.
Crowding is subtracted so that a photo with many near neighbours isn't similar to all of them.

Let `same` be the mean of c over all pairs of photos with the same label, `any` the mean of c over all pairs, and c₀ the
mean of `same` and `any`. The evidence of a label for photo i is a sum over the m photos j ≠ i that have the label:

    e_i(label) = Σ_j (c_ij − c₀) / (m + 4) / (same − any)

The 4 has the effect of four more photos with c = c₀, so one near photo is weaker evidence than several. The score of a
photo is the largest evidence of any other label minus the evidence of the photo's own label. The score corresponds to
the margin of confident learning (Northcutt et al., arXiv 1911.00068), but needs no classifier. Many labels have too few
photos to train a classifier.

Σ_j x_iᵀx_j is the inner product of x_i and the sum of the label's descriptors. So the evidence of all labels for all
photos needs only these sums (`label_sums`), and one matrix product of the descriptors and the sums. Tasks compute it,
each for a unit of photos.

The product takes N × K inner products. If an index has proposed the neighbours of each photo, the evidence of another
label is computed only if one of the photo's neighbours has that label.
"""

from dataclasses import dataclass

import numpy as np

from dim.app.tasks import spread
from dim.audit import label_sums
from dim.audit.label_sums import LABELS, LabelSums
from dim.audit.neighbours import Neighbours
from dim.audit.photos import NONE, AuditedPhotos, rows_in, span
from dim.search.exact import Part

NEUTRAL = 4  # photos with c = c₀ that the evidence adds to each label
ROWS = 1024  # rows of a block of the matrix product
_PAIRS = 2048  # photos and labels whose evidence is computed at a time if an index proposes the labels


@dataclass(frozen=True)
class Evidence:
    """The evidence of each photo's own label (`own`) and the largest of any other label (`other`), both float64 (N,).

    `other_label`, int32 (N,), is the code of the label that has the evidence `other`. It is `NONE`, and `other` is
    −inf, if no other label was looked at. A photo without a label has NaN as `own`. `any_pair` is the mean `any` in the
    docstring of this module, and `scale` is `same` − `any`. `counts` (K,) are the photos of each label.
    """

    own: np.ndarray
    other: np.ndarray
    other_label: np.ndarray
    any_pair: float
    scale: float
    counts: np.ndarray

    @property
    def score(self) -> np.ndarray:
        """The score of each photo, float64 (N,): the evidence `other` minus the evidence `own`."""
        score: np.ndarray = self.other - self.own
        return score

    def mean_within(self, labels: np.ndarray) -> np.ndarray:
        """The mean of c over the other photos with the same label, (N,); NaN if there are none. `labels` are codes."""
        others = np.where(labels == NONE, 0, self.counts[labels] - 1)
        mean = np.full(len(labels), np.nan)
        several = others > 0
        total = self.own[several] * self.scale * (others[several] + NEUTRAL)
        mean[several] = total / others[several] + self.any_pair + self.scale / 2
        return mean


def crowding(scores: np.ndarray) -> np.ndarray:
    """The crowding r of each photo, (N,), from the `scores` (N, k) of its nearest neighbours. −inf stands for none."""
    there = np.isfinite(scores)
    found = there.sum(axis=1)
    # An index may find no neighbour. Then the photo is not crowded.
    mean: np.ndarray = np.where(there, scores, 0).sum(axis=1, dtype=np.float64) / np.maximum(found, 1)
    return mean


def evidence(photos: AuditedPhotos, neighbours: Neighbours) -> Evidence:
    """Computes the evidence of labels for the photos that have a label. `require_auditable` has checked the labels.

    Raises UserError if a descriptor isn't L2-normalised.
    """
    crowded = crowding(neighbours.scores)
    used = photos.labels != NONE
    sums = label_sums.of(photos)
    crowds = np.bincount(photos.labels[used], crowded[used])
    any_pair, scale = _means(sums, crowds, crowded[used])
    middle = any_pair + scale / 2
    own, most = np.full(len(photos), np.nan), np.full(len(photos), -np.inf)
    other_label = np.full(len(photos), NONE, np.int32)
    proposed = neighbours.rows if neighbours.proposed else None
    for some, held in sums.slices():
        labels = _Labels(some.start, held, sums.counts[some], crowds[some] + sums.counts[some] * middle, middle)
        shared = (photos.labels, crowded, proposed, labels)
        results = spread(_evidence, photos.units, shared, workers=photos.workers, stage="summing", size=rows_in)
        for position, (mine, found, label) in results:
            rows = span(photos.units[position])
            own[rows] = np.where(np.isnan(mine), own[rows], mine)
            better = found > most[rows]  # of equal ones, the first label counts
            most[rows] = np.where(better, found, most[rows])
            other_label[rows] = np.where(better, label, other_label[rows])
    return Evidence(own / scale, most / scale, other_label, any_pair, scale, sums.counts)


def _means(sums: LabelSums, crowds: np.ndarray, crowding: np.ndarray) -> tuple[float, float]:
    """Returns the mean `any`, and `scale`. `crowding` (n,) is r of the labelled photos, `crowds` (K,) its sums."""
    n, others = len(crowding), sums.counts - 1
    # `within` is Σ c_ij over all i ≠ j with the same label. `everywhere` is Σ 2 x_iᵀx_j over all i ≠ j.
    within = 2 * (sums.squares.sum() - sums.lengths) - 2 * (others * crowds).sum()
    everywhere = 2 * (sums.total @ sums.total - sums.lengths)
    any_pair = float(everywhere / (n * (n - 1)) - 2 * crowding.mean())
    return any_pair, float(within / (sums.counts * others).sum()) - any_pair


@dataclass(frozen=True)
class _Labels:
    """A slice of L labels, from the code `first` on.

    `sums` (L, D) has the sum of each label's descriptors, `counts` (L,) its photos, and `offsets` (L,) the sum of
    r + c₀ over its photos. `middle` is c₀.
    """

    first: int
    sums: np.ndarray
    counts: np.ndarray
    offsets: np.ndarray
    middle: float

    def among(self, codes: np.ndarray) -> np.ndarray:
        """The places of the labels `codes` in this slice, or `NONE`."""
        places: np.ndarray = codes.astype(np.int64) - self.first
        places[(codes == NONE) | (places < 0) | (places >= len(self.counts))] = NONE
        return places


def _evidence(
    unit: list[Part], codes: np.ndarray, crowded: np.ndarray, proposed: np.ndarray | None, labels: _Labels
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes the evidence of `labels` for the photos of a unit.

    `codes` and `crowded` (N,) are the label and the crowding of each photo. `proposed` (N, k) has its neighbours, if
    their labels are the only ones to look at.

    Returns:
        Three arrays (n,): the evidence of each photo's own label, or NaN; the largest evidence of another label, or
        −inf; and the code of that label. The evidence is multiplied by `scale`.
    """
    found = []
    for part in unit:
        vectors = part.load()
        for start in range(0, part.size, ROWS):
            rows = slice(part.start + start, part.start + min(start + ROWS, part.size))
            block, crowd, own = vectors[start : start + ROWS], crowded[rows], labels.among(codes[rows])
            if proposed is None:
                best = _strongest(labels, block, crowd, own)
            else:
                near = proposed[rows]
                best = _strongest_of(labels, block, crowd, own, labels.among(np.where(near < 0, NONE, codes[near])))
            found.append((_of_own(labels, block, crowd, own), *best))
    mine, most, place = map(np.concatenate, zip(*found, strict=True))
    return mine, most, (place + labels.first).astype(np.int32)


def _of_own(labels: _Labels, vectors: np.ndarray, crowded: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The evidence of each photo's own label, at the place `own` (n,); NaN where that is `NONE`."""
    evidence = np.full(len(own), np.nan)
    there = np.flatnonzero(own != NONE)
    x, r, place = vectors[there].astype(np.float64), crowded[there], own[there]
    # The sum over all photos of the label, and then without the photo itself.
    with_itself = 2 * _dot(x, labels.sums[place]) - labels.counts[place] * r - labels.offsets[place]
    itself = 2 * _dot(x, x) - 2 * r - labels.middle
    evidence[there] = (with_itself - itself) / (labels.counts[place] - 1 + NEUTRAL)
    return evidence


def _strongest(
    labels: _Labels, vectors: np.ndarray, crowded: np.ndarray, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Finds for each photo the label with the largest evidence, except its own.

    Returns the evidence, and the place of the label, both (n,).
    """
    most, place = np.full(len(own), -np.inf), np.full(len(own), NONE)
    each = np.arange(len(own))
    for first in range(0, len(labels.counts), LABELS):
        part = slice(first, first + LABELS)
        found = 2 * (vectors @ labels.sums[part].T) - np.outer(crowded, labels.counts[part]) - labels.offsets[part]
        found /= labels.counts[part] + NEUTRAL
        here = (own >= first) & (own < first + found.shape[1])
        found[each[here], own[here] - first] = -np.inf
        best = found.argmax(axis=1)
        better = found[each, best] > most
        most = np.where(better, found[each, best], most)
        place = np.where(better, best + first, place)
    return most, place


def _strongest_of(
    labels: _Labels, vectors: np.ndarray, crowded: np.ndarray, own: np.ndarray, asked: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Does what `_strongest` does, among the labels at the places `asked` (n, k). `NONE` stands for none."""
    evidence = np.full(asked.shape, -np.inf)
    photos, columns = np.nonzero((asked != NONE) & (asked != own[:, None]))
    for start in range(0, len(photos), _PAIRS):
        i, column = photos[start : start + _PAIRS], columns[start : start + _PAIRS]
        place = asked[i, column]
        found = 2 * _dot(vectors[i], labels.sums[place]) - labels.counts[place] * crowded[i] - labels.offsets[place]
        evidence[i, column] = found / (labels.counts[place] + NEUTRAL)
    # Of equal ones, the first label counts.
    order = np.lexsort((asked, -evidence), axis=1)[:, :1]
    return np.take_along_axis(evidence, order, axis=1)[:, 0], np.take_along_axis(asked, order, axis=1)[:, 0]


def _dot(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    products: np.ndarray = np.einsum("ij,ij->i", left, right, dtype=np.float64)
    return products
