"""Writes the planned parts of an index: keeps what is there, divides the rest among tasks, and notes what is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import faiss
import pyarrow as pa

from dim.app import progress, tasks
from dim.app.output_folder import Output
from dim.io import files, local_copies, seal, tables
from dim.io.seal import Facts, Seal
from dim.search import fill_index
from dim.search.exact import Part
from dim.search.faiss_files import FILE, IDS_FILE, matches
from dim.search.fill_index import Filling, PartWork, Unit
from dim.search.index_parts import HeldShard, IndexPart, cut, key_of, rows_of

UNIT_ROWS = 65536  # about the rows of a unit; fixed, so that the result doesn't depend on the number of tasks


@dataclass(frozen=True)
class PartWriter:
    """Writes parts to `out`.

    Args:
        out: The folder of the index.
        filling: What the tasks need.
        before: The facts about the files of the existing index.
        loads: The rows of each shard of the store.
        ids: The ids of all rows of the store.
        workers: The most tasks that run at a time; None for one per CPU.
    """

    out: Output
    filling: Filling
    before: Seal
    loads: Mapping[HeldShard, Part]
    ids: pa.ChunkedArray
    workers: int | None

    def write(self, parts: Sequence[IndexPart]) -> Seal:
        """Writes what is not there yet. Returns the facts about the files of all parts."""
        notes = [self._read_note(part) for part in parts]
        done = self._agree([(part.file(FILE), facts) for part, facts in zip(parts, notes, strict=True)])
        sealed = {part.file(FILE): facts for part, facts, is_done in zip(parts, notes, done, strict=True) if is_done}
        left = self._with_whole_bases([part for part in parts if part.file(FILE) not in sealed])
        unchanged = [part.file(name) for part in left if part.unchanged for name in _FILES]
        sealed |= {name: self.before[name] for name in unchanged}
        works = self._works([part for part in left if not part.unchanged])
        self._fill([unit for work in works for unit in work.units])
        with progress.step("writing the parts of the index"):
            for number, facts in tasks.spread(fill_index.write_part, works, [self.filling], workers=self.workers):
                sealed[works[number].part.file(FILE)] = facts
        for part in parts:
            if part.file(IDS_FILE) not in sealed:
                sealed[part.file(IDS_FILE)] = self._write_ids(part)
            self.out.path(part.file(FILE))
        return {part.file(name): sealed[part.file(name)] for part in parts for name in _FILES}

    def _note(self, part: IndexPart) -> str:
        return files.join(self.filling.notes, f"{key_of(self.filling.key, part.name, part.shards)}.json")

    def _read_note(self, part: IndexPart) -> Facts:
        """The facts about the file of `part` that an earlier run of this command noted; none if there was no such run.

        The file may be another one.
        """
        uri = self._note(part)
        facts: Facts = files.read_json(uri) if files.exists(uri) else {}
        return facts

    @progress.step("checking the files of the index")
    def _with_whole_bases(self, parts: Sequence[IndexPart]) -> list[IndexPart]:
        """Returns `parts` without the bases whose files are missing or damaged."""
        names = [part.base.file(name) for part in parts if part.base for name in _FILES]
        agree = dict(zip(names, self._agree([(name, self.before.get(name, {})) for name in names]), strict=True))
        return [
            part if part.base and all(agree[part.base.file(name)] for name in _FILES) else replace(part, base=None)
            for part in parts
        ]

    def _agree(self, known: Sequence[tuple[str, Facts]]) -> list[bool]:
        """Whether each file of the index has the size and the checksum of the facts that are `known` about it."""
        units = [(files.join(self.filling.folder, name), facts) for name, facts in known]
        return list(tasks.in_order(tasks.spread(_agrees, units, workers=self.workers)))

    def _works(self, parts: Sequence[IndexPart]) -> list[PartWork]:
        """What is to be done for each of `parts`."""
        empty = self.filling.empty_index()
        mergeable = fill_index.can_be_merged(empty)
        in_units = mergeable and not isinstance(empty, faiss.IndexFlat)  # a flat index goes straight to disk
        threads = tasks.threads_of_a_call(len(parts), self.workers)
        works = []
        for part in parts:
            folder = files.parent(files.join(self.filling.folder, part.file(FILE)))
            files.make_folder(folder)
            local_copies.sweep(folder)
            # Rows can be removed only from indexes that can be merged; others are filled again.
            filled = part if mergeable or not part.base or not part.gone.any() else replace(part, base=None)
            units = self._units(part.added) if in_units else []
            loads = [self.loads[shard] for shard in filled.added]
            works.append(
                PartWork(filled, self._note(part), units, loads, threads, progress=not units and len(parts) == 1)
            )
        return works

    def _units(self, shards: Sequence[HeldShard]) -> list[Unit]:
        return [
            Unit(key_of(self.filling.key, group), rows_of(group), [self.loads[shard] for shard in group])
            for group in cut(shards, -(-rows_of(shards) // UNIT_ROWS))
        ]

    def _fill(self, units: Sequence[Unit]) -> None:
        if not units:
            return
        done = tasks.spread(
            fill_index.fill_unit, units, [self.filling], workers=self.workers, stage="indexing",
            size=lambda unit: unit.rows, unit="rows",
        )  # fmt: skip
        for _ in done:
            pass

    def _write_ids(self, part: IndexPart) -> Facts:
        spans = [self.loads[shard] for shard in part.shards]
        chunks = [chunk for span in spans for chunk in self.ids.slice(span.start, span.size).chunks]
        name = part.file(IDS_FILE)
        tables.write(self.out.path(name), pa.table({"image_id": pa.chunked_array(chunks, pa.string())}))
        return seal.create(self.out.folder, [name], {})[name]


_FILES = (FILE, IDS_FILE)


def _agrees(file: tuple[str, Facts]) -> bool:
    """Whether the file at a URI has the size and the checksum of the facts about it."""
    uri, facts = file
    if not facts or not files.exists(uri):
        return False
    with local_copies.path_to_read(uri) as path:
        return matches(path, facts)
