"""What --index names: an index, or a folder of descriptors, which is searched exactly from disk."""

from dataclasses import dataclass

import pyarrow as pa

from dim import files, local_copies, output, seal, tables
from dim.data import manifest
from dim.errors import UserError
from dim.extract import identity
from dim.extract.identity import Embedding
from dim.seal import Facts
from dim.search import exact, index, stored
from dim.search.database import Database, Exact


@dataclass(frozen=True)
class Target:
    """A database, the id of each of its rows, (N,) strings, and what they were embedded by."""

    database: Database
    ids: pa.Array
    embedding: Embedding


def read(folder: str, whitening: str | None, parameters: str | None) -> Target:
    """Reads what is in `folder`. Descriptors that are not whitened yet are whitened by the file `whitening`.

    `parameters` are those of `index.read`. Raises UserError where `folder` holds neither an index nor descriptors, the
    index is not finished or has none of the parameters, or the whitening doesn't fit.
    """
    record = output.record_of(folder)
    if record is None or record["job"] not in ("index", "extract"):
        raise UserError(f"--index {folder!r} holds neither an index nor descriptors; make it with index.py")
    if record["job"] == "extract":
        if parameters:
            raise UserError(f"--parameters {parameters!r} are for an index; {folder!r} is a folder of descriptors")
        rows = stored.read(folder, whitening)
        return Target(Exact(rows.parts, exact.places(rows.ids)), rows.ids, rows.embedding)
    embedding = identity.of_folder(folder)
    counts = record.get("counts")
    known = counts if isinstance(counts, dict) else {}
    # The result tells of FAISS's file, too, and is all that an index has that was made before there were seals.
    facts = {index.IDS_FILE: {}, **(seal.of_record(record, folder) or {}), index.FILE: known}
    ids = _ids(files.join(folder, index.IDS_FILE), facts[index.IDS_FILE])
    seal.require_whole(folder, facts, "index")
    if index.SEAL_FILE in facts:
        seal.require_content(files.join(folder, index.SEAL_FILE), facts[index.SEAL_FILE], "index")
    with local_copies.read(files.join(folder, index.FILE)) as path:
        return Target(index.read(path, exact.places(ids), parameters, known), ids, embedding)


def _ids(uri: str, facts: Facts) -> pa.Array:
    table = tables.read(uri)
    if "image_id" not in table.column_names or table["image_id"].null_count:
        raise UserError(f"{uri!r} has no image_id for each row; make it again with index.py")
    ids = manifest.text(uri, table, "image_id").combine_chunks()
    seal.require_content(uri, facts, "index")
    return ids
