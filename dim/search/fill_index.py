"""Fills the parts of an index: the work that index.py divides among tasks.

If copies of a trained index can be merged, tasks fill a copy for each *unit*, some consecutive shards (`fill_unit`).
Then `write_part` merges the units of a part. If copies can't be merged, `write_part` adds all rows of a part. The
result doesn't depend on the number of tasks, except for a graph (HNSW) that several threads build.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from dim.app.progress import with_progress
from dim.errors import UserError
from dim.io import files, local_copies
from dim.io.seal import Facts
from dim.search import index_factory
from dim.search.database import prefetched
from dim.search.exact import Part
from dim.search.faiss_files import FILE, facts_of, inverted_lists, matches
from dim.search.index_parts import IndexPart

_COPIED = 8192  # rows of a flat index that are copied at a time


@dataclass(frozen=True)
class Filling:
    """What all tasks share: the index's folder, the folder of notes and units, `--factory`, and the trained index.

    `key` is the checksum of the trained index, and `trained` the index itself, serialised.
    """

    folder: str
    notes: str
    factory: str
    key: str
    trained: np.ndarray

    def empty_index(self) -> Any:
        """A copy of the trained index, without rows."""
        return faiss.deserialize_index(self.trained)

    def add(self, index: Any, blocks: Iterable[np.ndarray]) -> None:
        """Adds `blocks` (n, D) to `index`. Raises UserError if it takes no rows."""
        index_factory.add(index, blocks, f"--factory {self.factory!r}")


@dataclass(frozen=True)
class Unit:
    """Consecutive shards of a store, which load their rows, and the name of the file of the index that holds them."""

    key: str
    rows: int
    shards: Sequence[Part]


@dataclass(frozen=True)
class PartWork:
    """What `write_part` does: writes `part` from its base and, if they are mergeable, `units`; otherwise `shards`.

    `note` is the URI of the note that the part is done. `threads` is the number of threads that add rows. `progress`
    says whether the call itself logs its progress.
    """

    part: IndexPart
    note: str
    units: Sequence[Unit]
    shards: Sequence[Part]
    threads: int
    progress: bool


def can_be_merged(empty: Any) -> bool:
    """Whether indexes that are filled copies of `empty` can be merged. Their rows can then be removed as well."""
    one, other = (faiss.deserialize_index(faiss.serialize_index(empty)) for _ in range(2))
    try:
        one.check_compatible_for_merge(other)
    except RuntimeError:
        return False
    return True


def fill_unit(unit: Unit, filling: Filling) -> None:
    """Writes the index of the rows of `unit` to its file, and then the facts about the file, unless they are there."""
    uri = files.join(filling.notes, unit.key)
    if files.exists(f"{uri}.json"):
        return
    faiss.omp_set_num_threads(1)  # each CPU fills a unit of its own
    index = filling.empty_index()
    filling.add(index, prefetched(unit.shards))
    _require_rows(index, unit.rows)
    with local_copies.path_to_write(f"{uri}.index") as path:
        faiss.write_index(index, path)
        facts = facts_of(path)
    files.write_json(f"{uri}.json", facts)


def write_part(work: PartWork, filling: Filling) -> Facts:
    """Writes the file of a part, and a note with the facts about it. Returns the facts."""
    with local_copies.path_to_write(files.join(filling.folder, work.part.file(FILE))) as path:
        index = filling.empty_index()
        if isinstance(index, faiss.IndexFlat):
            _write_flat(path, index.d, work.part.rows, _counted(_flat_blocks(work, filling, index.d), work))
        else:
            if work.part.base:
                index = _read(files.join(filling.folder, work.part.base.file(FILE)))
                _remove(index, work.part.gone)
            if work.units:
                _merge(index, work, filling)
            else:
                faiss.omp_set_num_threads(work.threads)
                filling.add(index, _counted(prefetched(work.shards), work))
            _require_rows(index, work.part.rows)
            faiss.write_index(index, path)
        facts = {**facts_of(path), "rows": work.part.rows}
        # The note comes first: without it, a part that takes the place of its base would lose the base to a kill.
        files.write_json(work.note, facts)
    return facts


def _counted(blocks: Iterator[np.ndarray], work: PartWork) -> Iterator[np.ndarray]:
    return with_progress(blocks, len, "indexing", work.part.rows, "rows") if work.progress else blocks


def _require_rows(index: Any, rows: int) -> None:
    if index.ntotal != rows:
        raise RuntimeError(f"the index has {index.ntotal} rows, not {rows}")


def _read(uri: str) -> Any:
    with local_copies.path_to_read(uri) as path:
        return faiss.read_index(path)


def _merge(index: Any, work: PartWork, filling: Filling) -> None:
    """Appends the rows of the units to `index`."""
    numbered = inverted_lists(index) is not None  # only inverted lists store the numbers of rows
    for unit in work.units:
        uri = files.join(filling.notes, unit.key)
        with local_copies.path_to_read(f"{uri}.index") as path:
            if not matches(path, files.read_json(f"{uri}.json")):
                raise UserError(f"{uri + '.index'!r} was damaged; run the same command again")
            index.merge_from(faiss.read_index(path), index.ntotal if numbered else 0)


def _remove(index: Any, gone: np.ndarray) -> None:
    """Removes the rows that `gone` (N,) marks from `index`. The other rows keep their order."""
    if not gone.any():
        return
    index.remove_ids(faiss.IDSelectorBitmap(np.packbits(gone, bitorder="little")))
    if (inverted := inverted_lists(index)) is None:
        return
    numbers = np.cumsum(~gone) - 1
    for number in range(inverted.nlist):  # inverted lists keep the old numbers of rows
        if size := inverted.invlists.list_size(number):
            listed = faiss.rev_swig_ptr(inverted.invlists.get_ids(number), size)
            listed[:] = numbers[listed]


def _flat_blocks(work: PartWork, filling: Filling, dimension: int) -> Iterator[np.ndarray]:
    """Yields the rows of a flat part: those kept of its base, read from the base's file, and those of the shards."""
    if work.part.base:
        kept = ~work.part.gone
        base = files.join(filling.folder, work.part.base.file(FILE))
        with local_copies.path_to_read(base) as path, open(path, "rb") as file:
            file.seek(-4 * len(kept) * dimension, 2)
            for start in range(0, len(kept), _COPIED):
                block = np.fromfile(file, "<f4", min(_COPIED, len(kept) - start) * dimension)
                yield block.reshape(-1, dimension)[kept[start : start + _COPIED]]
    yield from prefetched(work.shards)


def _write_flat(path: str, dimension: int, rows: int, blocks: Iterable[np.ndarray]) -> None:
    """Writes `blocks` (n, D) as a flat index to the file `path`, block by block.

    The file begins with FAISS's header of an empty index, but with the numbers of rows and values. The values follow.
    """
    header = bytearray(faiss.serialize_index(faiss.IndexFlatIP(dimension)))
    struct.pack_into("<q", header, 8, rows)
    struct.pack_into("<q", header, len(header) - 8, rows * dimension)
    with open(path, "wb") as file:
        file.write(header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, "<f4").data)
            rows -= len(block)
    if rows:
        raise RuntimeError(f"{abs(rows)} descriptors too {'few' if rows > 0 else 'many'} were read for the index")
