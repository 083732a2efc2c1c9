"""The pool that triplets are mined from: labelled rows in blocks, and exact distances between them.

`check_labels` raises an error if no triplet can be mined. `pool_of` sorts the rows by label; `dim.mine.blocks` then
brings their descriptors into this order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.errors import UserError
from dim.mine.config import Mining
from dim.search import exact

BLOCK_ROWS = 2048  # rows per block; the matrix product of two blocks has 16 MiB and is computed at full speed
_CHUNK = 512  # pairs of rows subtracted at a time; the differences fit into the CPU's cache

Column: TypeAlias = "np.ndarray | pa.Array | pa.ChunkedArray"  # ids or labels: strings, or None


def not_normalised(where: str, count: int, image_id: str, norm: float) -> UserError:
    """The error for `count` descriptors of another length than 1. `image_id` has the first of them."""
    return UserError(
        f"{where}: {count} descriptors are not L2-normalised; the norm of image {image_id!r} is {norm}; extract them "
        "again"
    )


def check_labels(labels: Column, settings: Mining, where: str) -> None:
    """Raises UserError, naming `where`, unless `labels` (N,) can give an anchor, a positive and a negative."""
    counts = pc.value_counts(pc.drop_null(strings(labels))).field("counts").to_numpy()
    require_pairs(counts, len(labels), where)
    needed = settings.negatives_per_anchor + 1
    if settings.strategy == "distinct" and len(counts) < needed:
        raise UserError(
            f"{where} has {len(counts)} labels, but strategy 'distinct' with {settings.negatives_per_anchor} negatives "
            f"needs {needed}; lower --negatives-per-anchor or use --strategy hardest"
        )


def require_pairs(counts: np.ndarray, images: int, where: str) -> None:
    """Raises UserError, naming `where`, unless there are two labels, and one of them has two images.

    `counts` (K,) are the images of each label, of `images` in all.
    """
    if len(counts) < 2:
        raise UserError(f"{where} has {len(counts)} label(s) on {images} images; at least two labels are needed")
    if counts.max() < 2:
        raise UserError(f"{where}: none of its {len(counts)} labels has two images; at least one must have two")


def strings(values: Column) -> pa.Array:
    """`values`, strings or None, as one Arrow array."""
    found = pa.array(values, pa.string()) if isinstance(values, np.ndarray) else values
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def off_unit(vectors: np.ndarray) -> np.ndarray:
    """The distance of each row's squared norm from 1, float64 (n,)."""
    off: np.ndarray = np.abs(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64) - 1)
    return off


def is_unit(off: np.ndarray | float) -> np.ndarray:
    """Whether rows that are `off_unit` by `off` count as L2-normalised."""
    return np.asarray(off < 0.01)  # with ">=", NaN would pass


@dataclass(frozen=True)
class Pool:
    """The n labelled rows, sorted by label and then by image id. The strategies identify a row by its position here.

    `rows`: positions in the caller's arrays. `labels`: codes from 0 on, ascending. `id_ranks`: the rank of each row's
    image id; ranks decide ties. `tolerance`: the largest possible difference between 2 − 2x·y, with x·y in float32,
    and `distances`. `blocks`: the descriptors of the blocks that this process needs, float32 or float16 (up to
    `block_rows`, D); the others are in Ray's object store.
    """

    rows: np.ndarray
    labels: np.ndarray
    id_ranks: np.ndarray
    block_rows: int
    tolerance: float = 0.0
    blocks: Mapping[int, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def block_count(self) -> int:
        """The number of blocks."""
        return -(-len(self) // self.block_rows)

    def block(self, i: int) -> np.ndarray:
        """The descriptors of block i, float32."""
        return self.blocks[i].astype(np.float32, copy=False)

    def holding(self, blocks: Mapping[int, np.ndarray]) -> "Pool":
        """The same pool, with the descriptors of `blocks`."""
        return replace(self, blocks=blocks)

    def span(self, i: int) -> slice:
        """The rows of block i."""
        return slice(i * self.block_rows, min((i + 1) * self.block_rows, len(self)))

    def blocks_of(self, start: int, stop: int) -> range:
        """The blocks that hold the rows from `start` to `stop` − 1."""
        return range(start // self.block_rows, -(-stop // self.block_rows))

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
        """The descriptors of `rows` (R,), (R, D)."""
        blocks, places = np.divmod(rows, self.block_rows)
        first = blocks[0]
        if (blocks == first).all():
            return self.blocks[first][places]
        order = np.argsort(blocks, kind="stable")
        taken = [self.blocks[i][places[blocks == i]] for i in np.unique(blocks).tolist()]
        return np.concatenate(taken)[np.argsort(order)]


def pool_of(labels: Column, image_ids: Column, block_rows: int = BLOCK_ROWS) -> Pool:
    """Makes the pool of the rows that have a label, without their descriptors.

    `labels` (N,) and the unique `image_ids` (N,) are strings. A row with the label None takes no part.
    """
    encoded = pc.dictionary_encode(strings(labels))
    # The codes are in the order of the labels. The code −1, for None, is the last one of `in_order`.
    in_order = np.append(exact.tie_order_of(encoded.dictionary), -1)
    codes = in_order[pc.fill_null(encoded.indices, -1).to_numpy()]
    ranks = exact.tie_order_of(strings(image_ids))
    order = np.lexsort((ranks, codes))[np.count_nonzero(codes < 0) :]
    return Pool(order, codes[order], ranks[order], block_rows)


def tolerance(worst: float, dimension: int) -> float:
    """The `tolerance` of a pool of rows of `dimension` values. `worst` is the largest `off_unit` of its rows."""
    # The error of a float32 dot product of D terms, summed in any order, is at most D·u·‖x‖‖y‖ to first order, with
    # u = 2⁻²⁴ (Higham, Accuracy and Stability of Numerical Algorithms, eq. 3.5). In ‖x − y‖² = ‖x‖² + ‖y‖² − 2x·y, the
    # squared norms differ from 1 by at most `worst`. The last term covers the rounding to float32 of distances, which
    # are at most 4, and of limits.
    return 2 * worst + 2.1 * dimension * 2.0**-24 + 2.0**-20


def too_similar(distances: np.ndarray, most: float) -> np.ndarray:
    """Which of the pairs with the given distances ‖x − y‖² have a cosine, 1 − ‖x − y‖² / 2, above `most`."""
    return 1 - distances.astype(np.float64) / 2 > most
