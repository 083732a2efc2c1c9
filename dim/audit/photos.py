"""The photos of an audit: where their descriptors are, and their labels and splits as numbers.

The descriptors stay on disk. `units` divides them into the units of work that tasks read and compute.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.mine.pool import require_pairs
from dim.search import exact
from dim.search.database import Exact
from dim.search.exact import Part

NONE = -1  # the code of a photo without a label, or without a split
UNIT_ROWS = 16384  # least rows of a unit, but for the last; the descriptors of a unit are read part by part


@dataclass(frozen=True)
class AuditedPhotos:
    """The N photos of an audit, in the order of the `parts` that hold their L2-normalised descriptors.

    `ids` are strings (N,). `labels` and `splits`, int32 (N,), are codes: positions in `label_names` (K,), which are
    sorted, and in `split_names`, or `NONE`. `positions`, int64 (N,), are the photos' positions in the manifest. At most
    `workers` tasks read the photos at a time, and each may hold `share` bytes of data.
    """

    parts: Sequence[Part]
    ids: pa.ChunkedArray
    labels: np.ndarray
    splits: np.ndarray
    label_names: pa.Array
    split_names: pa.Array
    positions: np.ndarray
    workers: int | None
    share: int

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def tie_order(self) -> np.ndarray:
        """The tie-break order of the photos, (N,), by their ids."""
        return exact.tie_order_of(self.ids)

    @cached_property
    def database(self) -> Exact:
        """The photos as an exact database."""
        return Exact(self.parts, self.tie_order, workers=self.workers)

    @cached_property
    def sides(self) -> np.ndarray:
        """The combination of label and split of each photo, as a number, int64 (N,)."""
        sides: np.ndarray = (self.labels.astype(np.int64) + 1) * (len(self.split_names) + 1) + self.splits + 1
        return sides

    @cached_property
    def dimension(self) -> int:
        """D, the number of values of a descriptor."""
        return int(self.parts[0].load().shape[1])

    @property
    def most_rows(self) -> int:
        """The most descriptors, as float64, that a process may hold."""
        return max(1, self.share // (8 * self.dimension))

    @cached_property
    def units(self) -> list[list[Part]]:
        """The parts in groups of consecutive parts, with about `UNIT_ROWS` rows each."""
        return list(exact.grouped(self.parts, UNIT_ROWS))

    def id(self, row: int) -> str:
        """The image id of the photo `row`."""
        return str(self.ids[row].as_py())

    def label(self, row: int) -> str | None:
        """The label of the photo `row`."""
        return _name(self.label_names, self.labels[row])

    def split(self, row: int) -> str | None:
        """The split of the photo `row`."""
        return _name(self.split_names, self.splits[row])


def of(
    parts: Sequence[Part], ids: pa.ChunkedArray, labels: pa.Array, splits: pa.Array,
    positions: np.ndarray | None = None, *, workers: int | None = None, share: int = 2**30,
) -> AuditedPhotos:  # fmt: skip
    """Makes `AuditedPhotos` of the rows of `parts`, whose ids, labels and splits, (N,), are strings.

    By default, the positions are those of the rows.
    """
    places = np.arange(len(ids)) if positions is None else positions
    label_codes, label_names = _coded(labels)
    split_codes, split_names = _coded(splits)
    return AuditedPhotos(parts, ids, label_codes, split_codes, label_names, split_names, places, workers, share)


def require_auditable(photos: AuditedPhotos, where: str) -> None:
    """Raises UserError, naming `where`, unless there are two labels, and one of them has two photos."""
    require_pairs(np.bincount(photos.labels[photos.labels != NONE]), len(photos), where)


def span(unit: Sequence[Part]) -> slice:
    """The rows of a unit."""
    return slice(unit[0].start, unit[-1].start + unit[-1].size)


def rows_in(unit: Sequence[Part]) -> int:
    """The number of rows of a unit."""
    return sum(part.size for part in unit)


def _coded(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """The codes of `column`, int32 (N,), and the sorted distinct values that they are the positions of."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    encoded = column.cast(pa.string()).dictionary_encode()
    order = pc.array_sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order) + 1, np.int32)
    rank[order] = np.arange(len(order))
    rank[NONE] = NONE  # the last place, which the code of null also names
    codes = pc.fill_null(encoded.indices, NONE).to_numpy()
    return rank[codes], encoded.dictionary.take(pa.array(order))


def _name(names: pa.Array, code: int) -> str | None:
    return None if code == NONE else str(names[int(code)].as_py())
