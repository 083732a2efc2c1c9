"""Which shards of a store each part of an index holds, and what index.py keeps, adds and removes in an existing index.

An index is one part, in the folder itself, or several parts in the folders part-00000, part-00001, …. A part holds the
rows of whole shards of the store. A shard whose content changed counts as a new shard, and the old one as gone.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from dim.extract.finished_shards import Shard
from dim.io import files, seal

PREFIX = "part-"  # of the folder of a part


@dataclass(frozen=True, order=True)
class HeldShard:
    """The `rows` descriptors of a shard. `key` has the shard's name and checksum (or size, if it has no checksum)."""

    key: str
    rows: int


@dataclass(frozen=True)
class IndexPart:
    """The part in the folder `name` of an index ("" is the index's own folder), which holds `shards` in this order.

    `base` is the part of the existing index whose rows this part keeps, if any.
    """

    name: str
    shards: tuple[HeldShard, ...]
    base: "IndexPart | None" = None

    @property
    def rows(self) -> int:
        """The number of rows."""
        return rows_of(self.shards)

    @property
    def added(self) -> tuple[HeldShard, ...]:
        """The shards that `base` does not hold."""
        held = set(self.base.shards) if self.base else set()
        return tuple(shard for shard in self.shards if shard not in held)

    @property
    def unchanged(self) -> bool:
        """Whether this part is its base: the same shards, in the same folder."""
        return self.base is not None and (self.name, self.shards) == (self.base.name, self.base.shards)

    @property
    def gone(self) -> np.ndarray:
        """Which rows of `base` this part no longer holds, bool (rows of `base`,)."""
        assert self.base
        kept = set(self.shards)
        return np.repeat([shard not in kept for shard in self.base.shards], [shard.rows for shard in self.base.shards])

    def file(self, name: str) -> str:
        """The name of the part's file `name` within the folder of the index."""
        return files.join(self.name, name)

    def as_json(self) -> dict[str, Any]:
        """The entry of this part in index.json."""
        return {"name": self.name, "shards": [[shard.key, shard.rows] for shard in self.shards]}


def held(shard: Shard, rows: int) -> HeldShard:
    """The `shard` of a store, `rows` of whose images have a descriptor."""
    return HeldShard(f"{shard.name} {shard.facts.get('sha256', shard.size)}", rows)


def from_json(document: dict[str, Any]) -> IndexPart:
    """The part whose `as_json` is `document`. Raises KeyError, TypeError or ValueError if there is no such part."""
    if not re.fullmatch(rf"({PREFIX}[0-9]+)?", document["name"]):
        raise ValueError(f"{document['name']!r} is not the name of a part")
    return IndexPart(document["name"], tuple(HeldShard(key, rows) for key, rows in document["shards"]))


def rows_of(shards: Collection[HeldShard]) -> int:
    """The number of rows of `shards`."""
    return sum(shard.rows for shard in shards)


def key_of(*facts: object) -> str:
    """A name for the file that is made from `facts`."""
    return seal.sha256(repr(facts).encode())[:16]


def planned(
    shards: Sequence[HeldShard], existing: Sequence[IndexPart], most: int, count: int | None
) -> list[IndexPart]:
    """Plans the parts of an index that holds `shards`.

    Parts of the `existing` index are kept, without the shards that are gone. New shards go into the last part if it
    then has at most `most` rows, and otherwise into new parts. If `count` is given, and is not the number of parts that
    are kept, all parts are new.

    Args:
        shards: The shards of the store, in its order.
        existing: The parts of the index that the folder holds, if they can be kept.
        most: The number of rows that a part may have.
        count: The number of parts. By default, there are as few as `most` allows.
    """
    count = count and min(count, len(shards))
    there = set(shards)
    kept = [IndexPart(part.name, tuple(s for s in part.shards if s in there), part) for part in existing]
    kept = [part for part in kept if part.shards]
    if not kept or count not in (None, len(kept)):
        return _named(cut(shards, count or -(-rows_of(shards) // most)))
    known = {shard for part in existing for shard in part.shards}
    new = [shard for shard in shards if shard not in known]
    last = kept[-1]
    if not new:
        return kept
    if count or last.rows + rows_of(new) <= most:
        return [*kept[:-1], IndexPart(last.name, (*last.shards, *new), last.base)]
    kept = [IndexPart(part.name or _name(0), part.shards, part.base) for part in kept]
    first = 1 + max(int(part.name.rpartition("-")[2]) for part in kept)
    return kept + _named(cut(new, -(-rows_of(new) // most)), first)


def _named(groups: list[list[HeldShard]], first: int = 0) -> list[IndexPart]:
    alone = len(groups) == 1 and not first
    return [IndexPart("" if alone else _name(n), tuple(group)) for n, group in enumerate(groups, first)]


def _name(number: int) -> str:
    return f"{PREFIX}{number:05d}"


def cut(shards: Sequence[HeldShard], count: int) -> list[list[HeldShard]]:
    """Cuts `shards` into `count` groups of consecutive shards, which have about equally many rows.

    If there are fewer than `count` shards, each is a group.
    """
    count = min(count, len(shards))
    rows = np.array([shard.rows for shard in shards])
    middles = np.cumsum(rows) - rows / 2
    numbers = np.arange(count)
    starts = np.searchsorted(middles, numbers * rows.sum() / max(1, count))
    # A shard that is larger than a group leaves no shards to others; each takes at least one of those beside it.
    starts = np.maximum.accumulate(starts - numbers) + numbers
    starts = np.minimum(starts, len(shards) - count + numbers)
    return [list(shards[first:last]) for first, last in pairwise([*starts.tolist(), len(shards)])]
