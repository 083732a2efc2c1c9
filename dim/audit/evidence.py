"""How strongly the photos of each label claim a photo as one of theirs: the evidence of a label.

Similarity is measured relative to how crowded the space is around the two photos (CSLS: Conneau et al., arXiv
1710.04087): c_ij = 2 x_iᵀx_j − r_i − r_j, where r_i is the mean similarity of photo i to its ten nearest other photos.
A photo that resembles everything therefore resembles nothing in particular.

Let `same` be the mean of c over all pairs with one label, `any` the mean over all pairs, and c₀ the midpoint of the
two. The evidence of a label for photo i is a sum over the m photos j of the label other than i:

    e_i(label) = Σ_j (c_ij − c₀) / (m + 4) / (same − any)

The 4 acts as four more photos at the midpoint: a single near photo is weaker evidence than several. The score of a
photo is the largest e of another label less the e of its own. This is the margin of confident learning (Northcutt et
al., arXiv 1911.00068), for labels with too few photos to train a classifier on.

Σ_j x_iᵀx_j is the product of x_i and the sum of the label's vectors. So one matrix product, with one vector per label,
gives the evidence of all labels for all photos. It is computed block by block.
"""

from dataclasses import dataclass

import numpy as np

NEUTRAL = 4
ROWS, LABELS = 1024, 4096  # of a block of products


@dataclass(frozen=True)
class Evidence:
    """The evidence of each photo's `own` label and the largest evidence of any other label, each float64 (n,).

    `other_label` (n,) is the code of that other label. `any_pair` is `any` above, and `scale` is `same` − `any`.
    """

    own: np.ndarray
    other: np.ndarray
    other_label: np.ndarray
    any_pair: float
    scale: float

    @property
    def score(self) -> np.ndarray:
        """By how much more another label claims the photo than its own label does, float64 (n,)."""
        score: np.ndarray = self.other - self.own
        return score


def crowding(scores: np.ndarray) -> np.ndarray:
    """Each photo's r, (n,), from its similarities to its nearest other photos, (n, k). −inf fills up a short list."""
    there = np.isfinite(scores)
    mean: np.ndarray = np.where(there, scores, 0).sum(axis=1) / there.sum(axis=1)
    return mean


def evidence(vectors: np.ndarray, codes: np.ndarray, crowding: np.ndarray) -> Evidence:
    """Computes the evidence for photos of at least two labels, one of which has two photos.

    `vectors` (n, D) are L2-normalised. `codes` (n,) are the labels, numbered from 0 without gaps. `crowding` (n,) is r.
    """
    counts = np.bincount(codes)
    sums = np.zeros((len(counts), vectors.shape[1]))
    np.add.at(sums, codes, vectors)
    crowds = np.bincount(codes, crowding)
    lengths = _dot(vectors, vectors)
    others = counts[codes] - 1
    # `within` is Σ_j c_ij over the other photos j of i's label, `everywhere` the sum of 2 x_iᵀx_j over all i ≠ j.
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
    """The largest evidence of a label other than the photo's own, times `scale`, and that label; both (n,).

    `sums` (K, D) has each label's sum of vectors, `offsets` (K,) the sum of r + c₀ over its photos.
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
