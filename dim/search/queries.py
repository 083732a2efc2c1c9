"""What --queries names: a photo, a folder of photos, a manifest, or a folder of descriptors.

What --index names: an index, or a folder of descriptors, which is searched exactly from disk.
"""

from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from dim.app import output
from dim.data import manifest, photos
from dim.data.manifest import BOX
from dim.errors import UserError
from dim.extract import identity
from dim.extract.config import ExtractConfig, Extraction
from dim.extract.identity import Embedding
from dim.io import files, local_files, seal, tables
from dim.io.seal import Facts
from dim.model import whitening
from dim.search import descriptor_folder, exact, index
from dim.search.config import SearchConfig
from dim.search.database import Database, Exact

FOLLOWED = ("image_size", "resize", "scales", "scales_mean", "precision", "scaled_decode")
QUERIES_FILE = "queries.parquet"  # the photos that are queries, as a manifest in the output


@dataclass(frozen=True)
class Queries:
    """Queries that could be read, in the order of their ids: `ids` (Q,) strings, `vectors` (Q, D). `errors` says of
    each other query why not.
    """

    ids: pa.Array
    vectors: np.ndarray
    errors: dict[str, str]


def are_descriptors(path: str) -> bool:
    """Whether `path` is a folder of descriptors. Raises UserError where there is nothing at all."""
    if not files.exists(path):
        raise UserError(f"--queries {path!r}: there is no such file or folder")
    record = output.record_of(path) if files.is_folder(path) else None
    return record is not None and record["job"] == "extract"


def listed(path: str) -> pa.Table:
    """The photos that `path` names, as a manifest: image_id, path, and boxes where it is a manifest that has them.

    A photo's id is its name, or its path within the folder. Raises UserError where the folder is empty, or the manifest
    is broken or has no row that may be a query.
    """
    if tables.is_table(path):
        found = manifest.read(path).select(role="query")
        boxes = {name: found.table[name] for name in BOX if name in found.table.column_names}
        return pa.table({"image_id": found.table["image_id"], "path": list(map(files.absolute, found.paths)), **boxes})
    if files.is_folder(path):
        names = photos.file_names(path)
        if not names:
            raise UserError(f"--queries {path!r} is an empty folder; put photos into it")
        return pa.table({"image_id": names, "path": [files.join(files.absolute(path), name) for name in names]})
    return pa.table({"image_id": [files.name(path)], "path": [files.absolute(path)]})


def described(folder: str, file: str | None, embedding: Embedding, target: str) -> Queries:
    """The queries whose descriptors are in `folder`, whitened by `file` unless they are already.

    Raises UserError where they can't be compared with those of `target`, made by `embedding`, or none could be decoded.
    """
    rows = descriptor_folder.read(folder, file)
    identity.require_equal(embedding, target, rows.embedding, folder)
    order = np.argsort(exact.places(rows.ids))
    return Queries(rows.ids.take(order), np.concatenate(list(rows))[order], rows.errors)


def extraction(config: SearchConfig, embedding: Embedding) -> ExtractConfig:
    """How the photos that are queries are extracted; what is not given follows the `embedding` of the index.

    Raises UserError where the model or a flag makes another embedding.
    """
    from dim.extract.embedder import Recipe  # noqa: PLC0415  (descriptors at hand need no Ray)
    from dim.extract.job import embedding_of  # noqa: PLC0415

    if config.model is None:
        raise UserError(f"--queries {config.queries!r} are photos; give --model, the one that made {config.index!r}")
    how = {field.name: getattr(config, field.name) for field in fields(Extraction)}
    for name in FOLLOWED:
        if how[name] == getattr(Extraction(), name) and getattr(embedding, name) is not None:
            how[name] = getattr(embedding, name)
    photos = files.join(config.out, QUERIES_FILE)
    folder = files.join(config.out, "descriptors")
    found = ExtractConfig(manifest=photos, model=config.model, out=folder, whitening=config.whitening, **how)
    recipe = Recipe(
        found.source(config.model),
        found.precision,
        found.scales,
        found.scales_mean,
        whitening.load(found.whitening) if found.whitening else None,
        found.scaled_decode,
        found.limits,
    )
    identity.require_equal(embedding, config.index, embedding_of(recipe), config.model)
    return found


@dataclass(frozen=True)
class SearchTarget:
    """A database, the id of each of its rows, (N,) strings, and what they were embedded by."""

    database: Database
    ids: pa.Array
    embedding: Embedding


def read_target(folder: str, whitening: str | None, parameters: str | None) -> SearchTarget:
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
        rows = descriptor_folder.read(folder, whitening)
        return SearchTarget(Exact(rows.parts, exact.places(rows.ids)), rows.ids, rows.embedding)
    embedding = identity.of_folder(folder)
    counts = record.get("counts")
    known = counts if isinstance(counts, dict) else {}
    # The result tells of FAISS's file, too, and is all that an index has that was made before there were seals.
    facts = {index.IDS_FILE: {}, **(seal.of_record(record, folder) or {}), index.FILE: known}
    ids = _ids(files.join(folder, index.IDS_FILE), facts[index.IDS_FILE])
    seal.require_whole(folder, facts, "index")
    if index.SEAL_FILE in facts:
        seal.require_content(files.join(folder, index.SEAL_FILE), facts[index.SEAL_FILE], "index")
    with local_files.read(files.join(folder, index.FILE)) as path:
        return SearchTarget(index.read(path, exact.places(ids), parameters, known), ids, embedding)


def _ids(uri: str, facts: Facts) -> pa.Array:
    table = tables.read(uri)
    if "image_id" not in table.column_names or table["image_id"].null_count:
        raise UserError(f"{uri!r} has no image_id for each row; make it again with index.py")
    ids = manifest.text_column(uri, table, "image_id").combine_chunks()
    seal.require_content(uri, facts, "index")
    return ids
