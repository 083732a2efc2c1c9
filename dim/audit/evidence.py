"""How much the photos of each label say that a photo is one of theirs.

The similarity of two photos is taken relative to how crowded it is round them (CSLS: Conneau et al., 1710.04087):
c_ij = 2 x_iᵀx_j − r_i − r_j, where r is a photo's mean similarity to its ten nearest others. So photos that resemble
everything resemble nothing. Let `same` be the mean of c over the pairs of one label, `any` that over all pairs, and c₀
their middle. What the m photos of a label, i left out, say of photo i is

    e_i(label) = Σ_j (c_ij − c₀) / (m + 4) / (same − any),

a mean that four photos in the middle draw to 0: one photo, be it ever so near, says less than several. A photo's score
is the largest e of another label, less that of its own. It is the margin of confident learning (Northcutt et al.,
1911.00068) for labels of a few photos each, which no classifier can be trained on.

A sum over a label's photos is a product with the sum of their vectors, so that the e of all labels come from matrix
products with one vector a label. They are formed block by block.
"""

from dataclasses import dataclass

import numpy as np

NEUTRAL = 4
ROWS, LABELS = 1024, 4096  # of a block of products


@dataclass(frozen=True)
class Evidence:
    """For each photo (n,): what its own label says, what the other label says that says most, and which (a code).

    `any_pair` and `scale` are `any` and `same` − `any` above.
    """

    own: np.ndarray
    other: np.ndarray
    other_label: np.ndarray
    any_pair: float
    scale: float

    @property
    def score(self) -> np.ndarray:
        """How much more another label claims the photo than its own, float64 (n,)."""
        score: np.ndarray = self.other - self.own
        return score


def crowding(scores: np.ndarray) -> np.ndarray:
    """The r of each photo, (n,), from its similarities to its nearest others (n, k), −inf where there are fewer."""
    there = np.isfinite(scores)
    mean: np.ndarray = np.where(there, scores, 0).sum(axis=1) / there.sum(axis=1)
    return mean


def evidence(vectors: np.ndarray, codes: np.ndarray, crowding: np.ndarray) -> Evidence:
    """The evidence for photos with L2-normalised `vectors` (n, D) and the labels `codes` (n,), from 0 without a gap.

    `crowding` (n,) is the r above. There must be two labels, and one of them must have two photos.
    """
    counts = np.bincount(codes)
    sums = np.zeros((len(counts), vectors.shape[1]))
    np.add.at(sums, codes, vectors)
    crowds = np.bincount(codes, crowding)
    lengths = _dot(vectors, vectors)
    others = counts[codes] - 1
    # Σ_j c_ij over the other photos j of the own label; then over all pairs.
    within = 2 * (_dot(vectors, sums[codes]) - lengths) - others * crowding - (crowds[codes] - crowding)
    pairs = len(codes) * (len(codes) - 1)
    everywhere = 2 * (_dot(sums, sums.sum(axis=0)[None]).sum() - lengths.sum())
    any_pair = float(everywhere / pairs - 2 * crowding.mean())
    scale = float(within.sum() / others.sum()) - any_pair
    middle = any_pair + scale / 2
    own = (within - others * middle) / (others + NEUTRAL)
    other, label = _most(vectors, codes, crowding, _Labels(sums, crowds + counts * middle, counts))
    return Evidence(own / scale, other / scale, label, any_pair, scale)


def _dot(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    products: np.ndarray = np.einsum("ij,ij->i", left, np.broadcast_to(right, left.shape), dtype=np.float64)
    return products


@dataclass(frozen=True)
class _Labels:
    """Of each label: the sum of its vectors (K, D), that of r + c₀ over its photos (K,), their number (K,)."""

    sums: np.ndarray
    offsets: np.ndarray
    counts: np.ndarray

    def say(self, vectors: np.ndarray, crowding: np.ndarray, part: slice) -> np.ndarray:
        """What the labels in `part` say of photos that are not of theirs, in the scale of c."""
        sums = 2 * (vectors @ self.sums[part].T) - np.outer(crowding, self.counts[part]) - self.offsets[part]
        said: np.ndarray = sums / (self.counts[part] + NEUTRAL)
        return said


def _most(
    vectors: np.ndarray, codes: np.ndarray, crowding: np.ndarray, labels: _Labels
) -> tuple[np.ndarray, np.ndarray]:
    """The most that a label says of which the photo is not, and this label; both (n,)."""
    most, label = np.full(len(codes), -np.inf), np.zeros(len(codes), np.int64)
    for start in range(0, len(codes), ROWS):
        rows = slice(start, start + ROWS)
        each = np.arange(len(codes[rows]))
        for first in range(0, len(labels.counts), LABELS):
            said = labels.say(vectors[rows], crowding[rows], slice(first, first + LABELS))
            own = codes[rows] - first
            here = (own >= 0) & (own < said.shape[1])
            said[each[here], own[here]] = -np.inf
            best = said.argmax(axis=1)
            better = said[each, best] > most[rows]
            most[rows] = np.where(better, said[each, best], most[rows])
            label[rows] = np.where(better, best + first, label[rows])
    return most, label
