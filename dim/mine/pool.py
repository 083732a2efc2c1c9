"""The pool that triplets are mined from: labelled rows in blocks, and exact distances between them.

`check` raises an error if no triplet can be mined. `pool_of` sorts the rows by label and divides them into blocks.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dim.errors import UserError
from dim.mine.config import Mining

BLOCK_ROWS = 2048  # rows per block; the matrix product of two blocks has 16 MiB and is computed at full speed
_CHUNK = 512  # pairs of rows subtracted at a time; the differences fit into the CPU's cache


def check(
    vectors: np.ndarray, labels: np.ndarray, image_ids: np.ndarray, settings: Mining, where: str = "the training set"
) -> None:
    """Raises UserError, naming `where`, unless triplets can be mined from these arguments of `mine`.

    The labels must give an anchor, a positive and a negative, and the labelled rows must be L2-normalised.
    """
    check_labels(labels, settings, where)
    unequal = ~(_off_unit(vectors) < 0.01) & _labelled(labels)  # with ">=", NaN would pass
    if unequal.any():
        row = np.flatnonzero(unequal)[0]
        raise UserError(
            f"{where}: {unequal.sum()} descriptors are not L2-normalised; the norm of image {image_ids[row]!r} is "
            f"{np.linalg.norm(vectors[row])}; extract them again"
        )


def check_labels(labels: np.ndarray, settings: Mining, where: str) -> None:
    """Raises UserError, naming `where`, unless `labels` (N,) can give an anchor, a positive and a negative."""
    counts = Counter(label for label in labels if label is not None)
    if len(counts) < 2:
        raise UserError(f"{where} has {len(counts)} label(s) on {len(labels)} images; at least two labels are needed")
    if max(counts.values()) < 2:
        raise UserError(f"{where}: none of its {len(counts)} labels has two images; at least one must have two")
    needed = settings.negatives_per_anchor + 1
    if settings.strategy == "distinct" and len(counts) < needed:
        raise UserError(
            f"{where} has {len(counts)} labels, but strategy 'distinct' with {settings.negatives_per_anchor} negatives "
            f"needs {needed}; lower --negatives-per-anchor or use --strategy hardest"
        )


def _labelled(labels: np.ndarray) -> np.ndarray:
    return np.array([label is not None for label in labels], dtype=bool)


def _off_unit(vectors: np.ndarray) -> np.ndarray:
    # The distance of each row's squared norm from 1.
    off: np.ndarray = np.abs(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64) - 1)
    return off


@dataclass(frozen=True)
class Pool:
    """The n labelled rows, sorted by label and then by image id. The strategies identify a row by its position here.

    `rows`: positions in the caller's arrays. `labels`: integer codes, ascending. `id_ranks`: the rank of each row's
    image id; ranks decide ties. `blocks`: arrays of descriptors, float32 (up to `block_rows`, D), or references that
    `fetch` resolves to such arrays. `tolerance`: the largest possible difference between 2 − 2x·y, with x·y in
    float32, and `distances`. `index`: a reference to the serialised index that proposes negatives, if there is one.
    """

    rows: np.ndarray
    labels: np.ndarray
    id_ranks: np.ndarray
    blocks: Sequence[Any]
    block_rows: int
    tolerance: float
    fetch: Callable[[Any], np.ndarray] = lambda block: block
    index: Any = None

    def __len__(self) -> int:
        return len(self.rows)

    def block(self, i: int) -> np.ndarray:
        """The descriptors of block i."""
        return self.fetch(self.blocks[i])

    def span(self, i: int) -> slice:
        """The rows of block i."""
        return slice(i * self.block_rows, min((i + 1) * self.block_rows, len(self)))

    def distances(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """‖x − y‖², float32 (P,), of P pairs of rows. The sums are in float64 and do not depend on the other pairs."""
        found = np.empty(len(left), dtype=np.float32)
        for start in range(0, len(left), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            difference = self.take(left[chunk]).astype(np.float64)
            difference -= self.take(right[chunk])
            found[chunk] = np.square(difference, out=difference).sum(axis=1)
        return found

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The descriptors of `rows` (R,), float32 (R, D)."""
        blocks, places = np.divmod(rows, self.block_rows)
        first = blocks[0]
        if (blocks == first).all():
            return self.block(first)[places]
        order = np.argsort(blocks, kind="stable")
        taken = [self.block(i)[places[blocks == i]] for i in np.unique(blocks)]
        return np.concatenate(taken)[np.argsort(order)]


def pool_of(
    vectors: np.ndarray,
    labels: np.ndarray,
    image_ids: np.ndarray,
    *,
    block_rows: int = BLOCK_ROWS,
    put: Callable[[np.ndarray], Any] = lambda block: block,
) -> Pool:
    """Makes the pool of the rows that have a label. The first three arguments are those of `mine`.

    `put` stores each block and returns its entry in `Pool.blocks`.
    """
    used = np.flatnonzero(_labelled(labels))
    codes = np.unique(labels[used], return_inverse=True)[1]
    ranks = np.argsort(np.argsort(image_ids[used], kind="stable"))
    order = np.lexsort((ranks, codes))
    rows = used[order]
    blocks = [put(vectors[rows[start : start + block_rows]]) for start in range(0, len(rows), block_rows)]
    # The error of a float32 dot product of D terms, summed in any order, is at most D·u·‖x‖‖y‖ to first order, with
    # u = 2⁻²⁴ (Higham, Accuracy and Stability of Numerical Algorithms, eq. 3.5). In ‖x − y‖² = ‖x‖² + ‖y‖² − 2x·y, the
    # squared norms differ from 1 by at most `worst`. The last term of `tolerance` covers the rounding to float32 of
    # distances, which are at most 4, and of limits.
    worst = float(_off_unit(vectors)[used].max())
    tolerance = 2 * worst + 2.1 * vectors.shape[1] * 2.0**-24 + 2.0**-20
    return Pool(rows, codes[order], ranks[order], blocks, block_rows, tolerance)


def too_similar(distances: np.ndarray, most: float) -> np.ndarray:
    """Which of the pairs with the given distances ‖x − y‖² have a cosine, 1 − ‖x − y‖² / 2, above `most`."""
    return 1 - distances.astype(np.float64) / 2 > most
