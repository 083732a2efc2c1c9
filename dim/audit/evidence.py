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

Σ_j x_iᵀx_j is the inner product of x_i and the sum of the label's descriptors. The evidence of all labels for all
photos therefore needs only one matrix product, of the descriptors and these sums. It is computed block by block.
"""

from dataclasses import dataclass

import numpy as np

NEUTRAL = 4  # photos with c = c₀ that the evidence adds to each label
ROWS, LABELS = 1024, 4096  # size of a block of the matrix product: photos and labels


@dataclass(frozen=True)
class Evidence:
    """The evidence of each photo's own label (`own`) and the largest of any other label (`other`), both float64 (n,).

    `other_label` (n,) is the code of the label that has the evidence `other`. `any_pair` is the mean `any` in the
    docstring of this module, and `scale` is `same` − `any`.
    """

    own: np.ndarray
    other: np.ndarray
    other_label: np.ndarray
    any_pair: float
    scale: float

    @property
    def score(self) -> np.ndarray:
        """The score of each photo, float64 (n,): the evidence `other` minus the evidence `own`."""
        score: np.ndarray = self.other - self.own
        return score


def crowding(scores: np.ndarray) -> np.ndarray:
    """The crowding r of each photo, (n,), from the `scores` (n, k) of its nearest neighbours. −inf stands for none."""
    there = np.isfinite(scores)
    mean: np.ndarray = np.where(there, scores, 0).sum(axis=1) / there.sum(axis=1)
    return mean


def evidence(vectors: np.ndarray, codes: np.ndarray, crowding: np.ndarray) -> Evidence:
    """Computes the evidence of labels for photos. At least two labels must occur, and one of them at least twice.

    `vectors` (n, D) are L2-normalised. `codes` (n,) number the labels from 0 without gaps. `crowding` (n,) holds r.
    """
    counts = np.bincount(codes)
    sums = np.zeros((len(counts), vectors.shape[1]))
    np.add.at(sums, codes, vectors)
    crowds = np.bincount(codes, crowding)
    lengths = _dot(vectors, vectors)
    others = counts[codes] - 1
    # `within` is Σ_j c_ij over the other photos j with the label of i. `everywhere` is Σ 2 x_iᵀx_j over all i ≠ j.
    within = 2 * (_dot(vectors, sums[codes]) - lengths) - others * crowding - (crowds[codes] - crowding)
    pairs = len(codes) * (len(codes) - 1)
    everywhere = 2 * (_dot(sums, sums.sum(axis=0)[None]).sum() - lengths.sum())
    any_pair = float(everywhere / pairs - 2 * crowding.mean())
    scale = float(within.sum() / others.sum()) - any_pair
    middle = any_pair + scale / 2
    own = (within - others * middle) / (others + NEUTRAL)
    other, label = _strongest(vectors, codes, crowding, sums, crowds + counts * middle)
    return Evidence(own / scale, other / scale, label, any_pair, scale)


def _dot(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    products: np.ndarray = np.einsum("ij,ij->i", left, np.broadcast_to(right, left.shape), dtype=np.float64)
    return products


def _strongest(
    vectors: np.ndarray, codes: np.ndarray, crowding: np.ndarray, sums: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Finds for each photo the label with the largest evidence, except the photo's own label.

    Returns the evidence, multiplied by `scale`, and the code of the label, both (n,). `sums` (K, D) has the sum of each
    label's descriptors. `offsets` (K,) has the sum of r + c₀ over each label's photos.
    """
    counts = np.bincount(codes)
    most, label = np.full(len(codes), -np.inf), np.zeros(len(codes), np.int64)
    for start in range(0, len(codes), ROWS):
        rows = slice(start, start + ROWS)
        each = np.arange(len(codes[rows]))
        for first in range(0, len(counts), LABELS):
            part = slice(first, first + LABELS)
            found = 2 * (vectors[rows] @ sums[part].T) - np.outer(crowding[rows], counts[part]) - offsets[part]
            found /= counts[part] + NEUTRAL
            own = codes[rows] - first
            here = (own >= 0) & (own < found.shape[1])
            found[each[here], own[here]] = -np.inf
            best = found.argmax(axis=1)
            better = found[each, best] > most[rows]
            most[rows] = np.where(better, found[each, best], most[rows])
            label[rows] = np.where(better, best + first, label[rows])
    return most, label
