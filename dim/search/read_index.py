"""Makes a database to search from the folder of the flag `--index`, which has an index or descriptors.

Descriptors and flat FAISS indexes are searched exactly, from disk. Any other index becomes an `Approximate` database,
which FAISS searches. An index may have several parts. Each index file is checked before FAISS reads it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.app import output_folder, progress
from dim.data import manifest
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.extract import identity
from dim.extract.embedding import Embedding
from dim.io import files, local_copies, seal, tables
from dim.io.seal import Facts
from dim.search import descriptor_folder, exact, faiss_transforms
from dim.search.approximate import Approximate, IndexFile
from dim.search.database import PART_ROWS, Database, Exact
from dim.search.exact import Part
from dim.search.faiss_files import FILE, IDS_FILE, PARTS, SEAL_FILE, as_user_error, require_unchanged

_AGAIN = "make it again with index.py"


@dataclass(frozen=True)
class SearchTarget:
    """A database to search, the image ids of its rows, strings (N,), and the embedding that made the rows.

    Each row has `dimension` values.
    """

    database: Database
    ids: pa.ChunkedArray
    embedding: Embedding
    dimension: int


def read(folder: str, whitening: str | None, parameters: str | None, only: Manifest | None = None) -> SearchTarget:
    """Reads an index or a folder of descriptors.

    Descriptors that are not whitened yet are whitened with the file `whitening`. `parameters` are FAISS's search
    parameters, such as "nprobe=16". If `only` is given, the database has only the photos of that manifest.

    Raises:
        UserError: The folder has neither an index nor descriptors, the index is unfinished or damaged, `parameters`
            can't be set, the whitening doesn't fit the descriptors, no photo of `only` is there, or FAISS can't search
            only some rows of this kind of index.
    """
    record = output_folder.record_of(folder)
    if record is None or not (record["job"] == "index" or identity.holds_descriptors(record)):
        raise UserError(f"--index {folder!r} holds neither an index nor descriptors; make it with index.py")
    if identity.holds_descriptors(record):
        if parameters:
            raise UserError(f"--parameters {parameters!r} are for an index; {folder!r} is a folder of descriptors")
        rows = descriptor_folder.read(folder, whitening)
        found = SearchTarget(Exact(rows.parts, exact.tie_order_of(rows.ids)), rows.ids, rows.embedding, rows.dimension)
    else:
        with progress.step(f"reading the index {folder!r}"):
            found = _read_index(folder, record, parameters)
    return found if only is None else _only(found, only, folder)


def _read_index(folder: str, record: dict[str, Any], parameters: str | None) -> SearchTarget:
    embedding = identity.of_folder(folder)
    known = record["counts"] if isinstance(record.get("counts"), dict) else {}
    # Indexes that are older than seals hold the facts about FAISS's file only in the counts of the record.
    facts = {IDS_FILE: {}, FILE: known} | (seal.from_record(record, folder) or {})
    names = _part_names(folder, facts.get(SEAL_FILE))
    if names != [""]:
        del facts[IDS_FILE], facts[FILE]
    ids = [_read_ids(folder, files.join(name, IDS_FILE), facts) for name in names]
    seal.require_complete(folder, facts, "index")
    starts = np.cumsum([0, *map(len, ids)]).tolist()
    parts = [
        replace(_index_file(folder, files.join(name, FILE), facts), start=start, rows=len(own), parameters=parameters)
        for name, start, own in zip(names, starts, ids, strict=False)
    ]
    all_ids = pa.chunked_array(ids, pa.string())
    if len(parts) > 1 and pc.count_distinct(all_ids).as_py() < len(all_ids):
        raise UserError(f"{folder!r} has an image in two of its parts; {_AGAIN}")
    dimension: Any = known.get("dimension")
    return SearchTarget(opened(parts, exact.tie_order_of(all_ids), dimension), all_ids, embedding, dimension)


def _part_names(folder: str, facts: Facts | None) -> list[str]:
    """The folders of the parts within the index in `folder`, by its index.json, about which there are `facts`."""
    if facts is None:
        return [""]
    uri = files.join(folder, SEAL_FILE)
    seal.require_complete(folder, {SEAL_FILE: facts}, "index")
    seal.require_content(uri, facts, "index")
    return [part["name"] for part in files.read_json(uri).get(PARTS, [{"name": ""}])]


def _read_ids(folder: str, name: str, facts: Mapping[str, Facts]) -> pa.Array:
    uri = files.join(folder, name)
    table = tables.read(uri)
    if "image_id" not in table.column_names or table["image_id"].null_count:
        raise UserError(f"{uri!r} has no image_id for each row; {_AGAIN}")
    ids = manifest.text_column(uri, table, "image_id").combine_chunks()
    seal.require_content(uri, facts[name], "index")
    return ids


def _index_file(folder: str, name: str, facts: Mapping[str, Facts]) -> IndexFile:
    uri = files.absolute(files.join(folder, name))  # a task may run in another working folder
    known = facts[name]
    time = files.info(uri).mtime_ns
    return IndexFile(uri, known.get("bytes"), known.get("sha256"), time)


def _require_usable(part: IndexFile, dimension: Any) -> None:
    """Raises UserError unless the file is an index of the part's rows with `dimension` values, by their cosines."""
    with as_user_error(f"{part.uri!r} is not an FAISS index; {_AGAIN}"):
        index = part.open()
    if (index.ntotal, index.d) != (part.rows, dimension):
        raise UserError(
            f"{part.uri!r} has {index.ntotal} rows of {index.d} values, its {IDS_FILE} {part.rows} and its "
            f"{output_folder.RECORD} {dimension!r}; {_AGAIN}"
        )
    if objection := faiss_transforms.objection(index):  # earlier versions of dim could build such an index
        raise UserError(f"{part.uri!r}: {objection}; {_AGAIN}")


def opened(parts: Sequence[IndexFile], tie_order: np.ndarray, dimension: Any) -> Database:
    """Opens the `parts` of an index as a database, which is exact if they are flat.

    Raises UserError if a part isn't the file that was recorded, if it isn't an index of its rows with `dimension`
    values whose scores are cosines, or if its search parameters can't be set.
    """
    for part in parts:
        _require_usable(part, dimension)
    if not isinstance(parts[0].open(), faiss.IndexFlatIP):
        return Approximate(parts, tie_order)
    blocks = [
        Part(part.start + start, size, partial(_flat_rows, part, start, size, dimension))
        for part in parts
        for start in range(0, part.rows, PART_ROWS)
        for size in [min(PART_ROWS, part.rows - start)]
    ]
    if len(parts) > 1:
        return Exact(blocks, tie_order)
    with local_copies.path_to_read(parts[0].uri) as path:
        offset = files.info(path).size - 4 * len(tie_order) * dimension
        return Exact(blocks, tie_order, np.memmap(path, "<f4", "r", offset, (len(tie_order), dimension)))


def _flat_rows(part: IndexFile, start: int, size: int, dimension: int) -> np.ndarray:
    """Reads `size` rows from row `start` on of a flat index, whose file ends with the values of its rows.

    Raises UserError if index.py has replaced the file since the search began.
    """
    with files.opened(part.uri) as file:
        file.seek(4 * dimension * (start - part.rows), 2)
        content = file.read(4 * dimension * size)
    require_unchanged(part.uri, part.time)
    return np.frombuffer(content, "<f4").reshape(size, dimension)


def _only(found: SearchTarget, only: Manifest, folder: str) -> SearchTarget:
    """The rows of `found` that are photos of `only`. Raises UserError if there are none, or FAISS can't select rows."""
    mask = pc.is_in(found.ids, only.table["image_id"].combine_chunks()).to_numpy(zero_copy_only=False)
    chosen = np.flatnonzero(mask)
    if not len(chosen):
        raise UserError(f"none of the {len(only)} chosen photos of {only.uri!r} is in {folder!r}; give its manifest")
    ids = found.ids.filter(mask)
    tie_order = exact.tie_order_of(ids)
    if isinstance(found.database, Exact):
        ends = np.cumsum(mask)
        parts = [
            Part(int(ends[span.start] - mask[span.start]), int(kept.sum()), partial(_kept_rows, span, kept))
            for span in found.database.parts
            for kept in [mask[span.start : span.start + span.size]]
            if kept.any()
        ]
        return replace(found, ids=ids, database=Exact(parts, tie_order))
    assert isinstance(found.database, Approximate)
    database = Approximate([part.only(mask) for part in found.database.parts], tie_order, chosen)
    with as_user_error(f"{folder!r} is an index of which FAISS can't search only some rows; build another"):
        database.parts[0].search(np.zeros((1, database.parts[0].open().d)), 1)
    return replace(found, ids=ids, database=database)


def _kept_rows(part: Part, kept: np.ndarray) -> np.ndarray:
    rows: np.ndarray = part.load()[kept]
    return rows
