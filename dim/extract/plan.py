"""The plan of an extraction: which rows of the manifest go to which shard.

The rows, in their order, are cut into shards of equal size, and a shard is named after its rows. So the names of a
finished store's shards tell that nothing is left to do, as long as the manifest stays as it is.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from dim.data.manifest import Manifest
from dim.extract import store

FEWEST_ROWS, MOST_ROWS = 1024, 65536  # of a shard, if --shard-rows is not given
MOST_SHARDS = 1000  # about so many, until shards have MOST_ROWS


def default_shard_rows(photos: int) -> int:
    """The rows of a shard, for so many photos: a power of two, so that it rarely changes as a store grows."""
    wanted = max(FEWEST_ROWS, min(MOST_ROWS, photos // MOST_SHARDS))
    return 1 << (wanted.bit_length() - 1)


@dataclass(frozen=True)
class Plan:
    """The rows of `manifest`, with their content fingerprints, in shards of `shard_rows` rows.

    `part` is (I, N), which is every Nth shard from the Ith (from 1) on, or (1, 1), which is all.
    """

    manifest: Manifest
    contents: pa.ChunkedArray
    shard_rows: int
    part: tuple[int, int] = (1, 1)

    @cached_property
    def names(self) -> dict[str, slice]:
        """The rows of each shard, by the name of the shard."""
        size = self.shard_rows
        cut = [slice(start, start + size) for start in range(0, len(self.manifest), size)]
        return {store.shard_name(self.manifest.ids[rows], self.contents[rows]): rows for rows in cut}

    @cached_property
    def own(self) -> dict[str, slice]:
        """The `names` of the part."""
        number, count = self.part
        return dict(list(self.names.items())[number - 1 :: count])

    @cached_property
    def asked(self) -> np.ndarray:
        """Which rows of the manifest are in the part: bool (N,)."""
        asked = np.zeros(len(self.manifest), dtype=bool)
        for rows in self.own.values():
            asked[rows] = True
        return asked

    def parts_left(self, done: np.ndarray) -> list[str]:
        """The parts, such as "2/4", that have rows which are not `done`, bool (N,)."""
        count = self.part[1]
        left = [number for number, rows in enumerate(self.names.values()) if not done[rows].all()]
        return [f"{part + 1}/{count}" for part in sorted({number % count for number in left})]

    def rows_of(self, left: np.ndarray) -> pa.Table:
        """The input of the pipeline: the rows `left`, bool (N,), each with the name of the shard that it goes to.

        A shard that is left as a whole keeps its name. The other rows fill shards of their own.
        """
        whole = [rows for rows in self.own.values() if left[rows].all()]
        scattered = left.copy()
        for rows in whole:
            scattered[rows] = False
        others = np.flatnonzero(scattered)
        groups = [np.arange(*rows.indices(len(self.manifest))) for rows in whole]
        groups += [others[start : start + self.shard_rows] for start in range(0, len(others), self.shard_rows)]
        order = pa.array(np.concatenate([np.zeros(0, np.int64), *groups]))
        found = pa.table(
            {
                "image_id": self.manifest.ids.take(order),
                "path": self.manifest.uris.take(order),
                "box": self.manifest.box_lists.take(order),
                "content": self.contents.take(order),
            }
        )
        ends = np.cumsum([len(group) for group in groups], dtype=np.int64).tolist()
        parts = [found.slice(end - len(group), len(group)) for end, group in zip(ends, groups, strict=True)]
        names = pa.array([store.shard_name(part["image_id"], part["content"]) for part in parts], pa.string())
        numbers = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        return found.append_column("shard", names.take(pa.array(numbers)))
