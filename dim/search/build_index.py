"""What index.py does: builds an FAISS index from a folder of descriptors, or brings an existing index up to date.

1. An index without rows is trained on a sample, or kept from the existing index (`trained_index`).
2. The parts of the index are planned: which shards of the store each of them holds (`index_parts`).
3. Tasks fill and write the parts (`fill_index`). Notes in a folder of the output say what is done, so that the same
   command goes on after a kill.
4. index.json seals the files, and says which shards each part holds. `read_index` reads the folder.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import faiss

from dim.app import cluster, output_folder
from dim.app.config import MOST_SEED, require_at_least
from dim.app.output_folder import Output
from dim.errors import UserError
from dim.io import files, seal
from dim.io.seal import Seal
from dim.search import descriptor_folder, fill_index, index_parts, trained_index
from dim.search.config import IndexConfig
from dim.search.descriptor_folder import DescriptorFolder
from dim.search.faiss_files import FILE, PARTS, SEAL_FILE
from dim.search.fill_index import Filling
from dim.search.index_factory import empty_index, estimated_bytes
from dim.search.index_parts import HeldShard, IndexPart, key_of, rows_of
from dim.search.trained_index import TRAINED_FILE, TrainedIndex
from dim.search.write_parts import PartWriter

log = logging.getLogger(__name__)
NOTES = "building"  # folder of the notes and units of an unfinished index
TRAINED = "trained"  # entry of index.json


def build(config: IndexConfig) -> dict[str, Any]:
    """Builds or updates the index of `config.descriptors` in the folder `config.out`, and returns the job's result.

    Raises UserError if a flag is out of range, if the folder has no descriptors, or if FAISS can't build this index.
    """
    if not 0 <= config.seed <= MOST_SEED:
        raise UserError(f"--seed must be from 0 to {MOST_SEED}, not {config.seed}")
    require_at_least(config, {"train_rows": 1, "parts": 1})
    with cluster.joined():
        rows = descriptor_folder.read(config.descriptors, config.whitening, hashed=True)
        if not cluster.is_local():  # `output_folder.opened` checks it, too, but only after the task that trains
            cluster.require_shared([config.descriptors])
        dimension = rows.parts[0].load().shape[1]
        index = empty_index(config.factory, dimension, config.seed)
        shards = [index_parts.held(shard, part.size) for shard, part in zip(rows.shards, rows.parts, strict=True)]
        existing = _Existing(config.out, shards)
        recipe = trained_index.recipe_of(config, rows)
        trained = existing.trained(recipe, index) or trained_index.new(config, rows, dimension, key_of(sorted(shards)))
        before = existing.parts(trained)
        parts = index_parts.planned(shards, before, _most_rows(index, config), config.parts)
        _log_plan(config, index, rows, parts)
        inputs = {"descriptors": config.descriptors, "whitening": config.whitening}
        with (
            output_folder.opened(config.out, "index", config, inputs, rows.embedding.as_json()) as out,
            _notes(files.absolute(out.folder), trained) as notes,
        ):
            filling = Filling(files.absolute(out.folder), notes, config.factory, trained.sha256, trained.content)
            loads = dict(zip(shards, rows.parts, strict=True))
            written = PartWriter(out, filling, existing.sealed, loads, rows.ids, config.workers).write(parts)
            sealed = _seal(out, trained, parts, written)
            files.delete_folder(notes)
            changes = _changes(index, trained, before, parts)
            counts = {"rows": len(rows), "errors": len(rows.errors), "dimension": dimension, "trained_on": trained.rows}
            result = out.finish({"factory": config.factory, **counts, **_size(parts, sealed), **changes}, sealed)
            for name in {*files.folders(out.folder)} - {part.name for part in parts}:
                if name.startswith(index_parts.PREFIX):  # `finish` has emptied the folder of an earlier part
                    files.delete_folder(files.join(out.folder, name))
            return result


class _Existing:
    """The index in `folder`, if there is one that holds some of `shards`, or what was done of an unfinished one."""

    def __init__(self, folder: str, shards: Sequence[HeldShard]) -> None:
        self._folder, self._all = folder, key_of(sorted(shards))
        document = _document(folder)
        try:
            parts = [index_parts.from_json(part) for part in document.get(PARTS, [])]
        except (KeyError, TypeError, ValueError):  # it is not what this job writes: nothing can be kept
            parts = []
        holds = {shard for part in parts for shard in part.shards} & set(shards)
        self._document, self._parts = (document, parts) if holds else ({}, [])

    @property
    def sealed(self) -> Seal:
        """The facts about its files."""
        found: Seal = self._document.get(seal.FILES, {})
        return found

    def trained(self, recipe: dict[str, Any], empty: Any) -> TrainedIndex | None:
        """Its trained index, if that has this recipe. `empty` is an untrained index of the recipe."""
        if found := trained_index.kept(self._folder, self._document.get(TRAINED), recipe, empty):
            return found
        notes = files.join(self._folder, NOTES)
        begun = trained_index.kept(notes, _document(notes).get(TRAINED), recipe, empty)
        return begun if begun and begun.shards == self._all else None

    def parts(self, trained: TrainedIndex) -> list[IndexPart]:
        """Its parts, if they were filled from copies of `trained`."""
        known = self._document.get(TRAINED, {})
        same = (known.get("recipe"), known.get("sha256")) == (trained.recipe, trained.sha256)
        return self._parts if same else []


def _document(folder: str) -> dict[str, Any]:
    uri = files.join(folder, SEAL_FILE)
    with contextlib.suppress(UserError):  # it is damaged: nothing can be kept
        found = files.read_json(uri) if files.exists(uri) else {}
        return found if isinstance(found, dict) else {}
    return {}


@contextlib.contextmanager
def _notes(folder: str, trained: TrainedIndex) -> Iterator[str]:
    """Makes the folder of notes in `folder`, with the trained index. A UserError deletes it, as nothing can be used."""
    notes = files.join(folder, NOTES)
    files.make_folder(notes)
    if trained.rows:
        files.write_bytes(files.join(notes, TRAINED_FILE), trained.content.tobytes())
    files.write_json(files.join(notes, SEAL_FILE), {TRAINED: trained.as_json()})
    try:
        yield notes
    except UserError:
        files.delete_folder(notes)
        raise


def _most_rows(index: Any, config: IndexConfig) -> int:
    """The most rows that a part may have, so that a task can hold it in memory. A flat index is never in memory.

    Each part has a copy of the centroids. Its rows may take as much memory as they do, even if that exceeds the budget:
    more and smaller parts would hold little but centroids.
    """
    share, fixed = config.budget.share, estimated_bytes(index, 0)
    if isinstance(index, faiss.IndexFlat):
        return 2**62
    return max(1, max(share - fixed, fixed) // (estimated_bytes(index, 1) - fixed))


def _log_plan(config: IndexConfig, index: Any, rows: DescriptorFolder, parts: list[IndexPart]) -> None:
    estimate = estimated_bytes(index, len(rows))
    place = "written straight to disk" if isinstance(index, faiss.IndexFlat) else "held in memory while it is built"
    size = f"about {estimate / 1e6:.1f} MB, {estimate // len(rows)} bytes a row"
    several = f" in {len(parts)} parts" if len(parts) > 1 else ""
    log.info("%s of %d rows of %d values: %s, to be %s%s", config.factory, len(rows), index.d, size, place, several)


def _seal(out: Output, trained: TrainedIndex, parts: Sequence[IndexPart], written: Seal) -> Seal:
    """Writes the trained index and index.json. Returns the facts about them and the `written` parts."""
    known = {}
    if trained.rows:
        files.write_bytes(out.path(TRAINED_FILE), trained.content.tobytes())
        known[TRAINED_FILE] = {"bytes": len(trained.content), "sha256": trained.sha256}
    sealed = written | known
    document = {seal.FILES: sealed, TRAINED: trained.as_json(), PARTS: [part.as_json() for part in parts]}
    files.write_json(out.path(SEAL_FILE), document)
    return sealed


def _size(parts: Sequence[IndexPart], sealed: Seal) -> dict[str, Any]:
    """The entries of the result about the index's size. An index in one file also has the file's checksum."""
    facts = [sealed[part.file(FILE)] for part in parts]
    size, rows = (sum(each[name] for each in facts) for name in ("bytes", "rows"))
    checksum = {"sha256": facts[0]["sha256"]} if len(facts) == 1 else {}
    return {"parts": len(parts), "bytes": size, **checksum, "bytes_per_row": round(size / rows, 1)}


def _changes(
    index: Any, trained: TrainedIndex, before: Sequence[IndexPart], parts: Sequence[IndexPart]
) -> dict[str, Any]:
    """The entries of the result about what changed, and about how the index differs from one that is built anew."""
    if not any(part.base for part in parts):  # all parts are new
        before = []
    held, holds = ({shard for part in some for shard in part.shards} for some in (before, parts))
    kept, added, removed = map(rows_of, (held & holds, holds - held, held - holds))
    differs = None
    if trained.shards != key_of(sorted(holds)):
        if trained.rows:
            differs = f"it was trained on {trained.rows} of the {trained.among} rows that there were then"
        elif not fill_index.can_be_merged(index):
            differs = "its graph depends on the order in which rows were added"
    if before:
        log.info("%d rows kept, %d added, %d removed", kept, added, removed)
    if differs:
        log.info("an index built anew, in another folder, may find others: %s", differs)
    return {"kept": kept, "added": added, "removed": removed, "differs": differs}
