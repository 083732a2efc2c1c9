"""The descriptor store, a folder of Parquet shards with one row per image: writes, checks and reads shards.

Columns: `image_id: string`, `descriptor: fixed_size_list<float32>[D]` (float16 with `--store float16`; null in an error
row), `status` ("ok" or "error"), `error`, `width`, `height` (of the upright photo, in pixels), `content` (the photo's
content fingerprint).

A shard is named `part-<hash>.parquet`, after a hash of its image ids and content fingerprints. Its file is written as a
whole or not at all, so a shard that exists is finished. Its Parquet metadata holds the embedding of its descriptors
(`extract.embedding.Embedding`), so that readers can refuse a shard that was copied from another store.
"""

import json
from collections.abc import Iterator
from itertools import chain
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dim.errors import UserError
from dim.extract import finished_shards
from dim.extract.embedding import Embedding, from_json
from dim.extract.finished_shards import SHARD, Shard, belonging, is_shard
from dim.extract.halves import to_float32
from dim.extract.identity import of_folder, require_equal
from dim.io import files, seal, strict_json, tables
from dim.io.seal import Facts
from dim.io.storage import parallel_map

Column: TypeAlias = pa.Array | pa.ChunkedArray

OK, ERROR = "ok", "error"
AT_ONCE = 8  # shards that are read or written at the same time; each has some megabytes
# Keys of a shard's Parquet metadata: its embedding, and the ids of photos whose files hold several frames or pages.
EMBEDDING, SEVERAL = b"embedding", b"several_frames"


def schema(dimension: int, dtype: str = "float32") -> pa.Schema:
    """The store's schema for descriptors of `dimension` values of `dtype`."""
    text, pixels = pa.string(), pa.int32()
    descriptor = pa.list_(pa.float16() if dtype == "float16" else pa.float32(), dimension)
    first = [("image_id", text), ("descriptor", descriptor), ("status", text), ("error", text)]
    return pa.schema([*first, ("width", pixels), ("height", pixels), ("content", text)])


def shard_name(image_ids: Column, contents: Column) -> str:
    """The name of the shard that holds the rows with these ids and content fingerprints, in this order."""
    rows = pc.binary_join_element_wise(image_ids, contents, "\t")
    listed = pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), _one_array(rows))
    lines = pc.binary_join(listed, "\n")[0]
    return f"part-{seal.sha256(lines.as_buffer())[:16]}"


def marked(table: pa.Table, embedding: Embedding) -> pa.Table:
    """Adds `embedding` and the ids of photos with several frames to the metadata of `table`.

    The column `several`, if there is one, marks these photos. The returned table lacks this column.
    """
    several: list[str] = []
    if "several" in table.column_names:
        several = table.filter(table["several"].fill_null(False))["image_id"].to_pylist()
        table = table.drop_columns("several")
    return table.replace_schema_metadata({EMBEDDING: json.dumps(embedding.as_json()), SEVERAL: json.dumps(several)})


def several_frames(shard: pa.Table) -> int:
    """Counts the photos of `shard` whose files hold several frames or pages. The column `image_id` is needed."""
    listed = pa.array(json.loads((shard.schema.metadata or {}).get(SEVERAL, b"[]")), pa.string())
    return int(pc.sum(pc.is_in(shard["image_id"], listed)).as_py() or 0)


def write_shard(folder: str, name: str, table: pa.Table) -> Facts:
    """Writes a shard, which `marked` has made, and returns its facts."""
    sink = pa.BufferOutputStream()
    # Compressed descriptors would take 10% fewer bytes, but 1.5 times as long to read. Arrow by default stores a
    # dictionary of a column's values. With it, reading float16 descriptors would take three times as long.
    compression = {name: "zstd" for name in table.column_names if name != "descriptor"}
    pq.write_table(table, sink, compression=compression, write_page_checksum=True, use_dictionary=["status", "error"])
    content = sink.getvalue().to_pybytes()
    files.write_bytes(files.join(folder, f"{name}{SHARD}"), content)
    return facts_of(table, content)


def facts_of(table: pa.Table, content: bytes) -> Facts:
    """The facts of the shard `table`, whose file has this content: rows, errors, several_frames, bytes and sha256."""
    return {
        "rows": table.num_rows,
        "errors": error_count(table),
        "several_frames": several_frames(table),
        "bytes": len(content),
        "sha256": seal.sha256(content),
    }


def error_count(table: pa.Table) -> int:
    """Counts the error rows of `table`."""
    return int(pc.sum(pc.equal(table["status"], ERROR)).as_py() or 0)


def delete_shard(folder: str, name: str) -> None:
    """Deletes a shard if it exists."""
    files.delete(files.join(folder, f"{name}{SHARD}"))


def shards(folder: str) -> list[str]:
    """The names of the shards in `folder`, sorted."""
    return [name.removesuffix(SHARD) for name in files.names(folder) if is_shard(name)]


class Damaged(UserError):
    """The file of a shard is not what was written."""


def read_shard(
    folder: str,
    name: str,
    columns: list[str] | None = None,
    embedding: Embedding | None = None,
    dimension: int | None = None,
    *,
    content: bytes | None = None,
) -> pa.Table:
    """Reads the `columns` (None: all) of one shard. If the file has been read already, pass its `content`.

    Raises UserError if the shard is damaged, does not have the store's schema, has an embedding in its metadata that
    differs from `embedding`, or has descriptors of another dimension than `dimension`.
    """
    uri = files.join(folder, f"{name}.parquet")
    wanted = columns or schema(1).names
    try:
        table = tables.read_parquet(uri, list({*wanted, "status"}), content)
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"{uri!r} is damaged ({files.reason(error)}); {finished_shards.RENEW}") from error
    if wrong := next(_misfits(table, [*wanted, "status"], dimension), None):
        raise UserError(f"{uri!r} is not a shard of these descriptors: its column {wrong}; make this folder again")
    if embedding is not None and (mark := (table.schema.metadata or {}).get(EMBEDDING)):
        require_equal(_marked_by(mark, uri), uri, embedding, folder)
    return table.select(wanted)


def read_shards(
    folder: str, columns: list[str], of: list[Shard] | None = None, hashed: bool = False
) -> Iterator[tuple[Shard, pa.Table]]:
    """Yields each shard of a finished store, or each shard in `of`, with its rows. Reads several shards ahead.

    With `hashed`, each file's checksum is compared, too. Raises UserError if the store is unfinished, if a shard is
    missing, damaged or of another store or embedding, or if only some shards have an embedding in their metadata.
    """
    embedding = of_folder(folder)
    shards = belonging(folder) if of is None else of
    has_mark, size = None, None

    def read(shard: Shard) -> pa.Table:
        content = shard.read() if hashed else None
        table = read_shard(folder, shard.name, columns, embedding, size, content=content)
        shard.require(table.num_rows, content)
        return table

    # The first shard is read alone, because it gives the dimension that the other shards must have.
    tables = chain(map(read, shards[:1]), parallel_map(read, shards[1:], AT_ONCE))
    for shard, table in zip(shards, tables, strict=True):
        marked = EMBEDDING in (table.schema.metadata or {})
        if has_mark not in (None, marked):
            raise UserError(f"not all shards of {folder!r} name their embedding; make this folder again")
        has_mark = marked
        size = table["descriptor"].type.list_size if "descriptor" in columns else None
        yield shard, table


def _misfits(table: pa.Table, columns: list[str], dimension: int | None) -> Iterator[str]:
    """Yields a message per column that is missing, repeated, of a wrong type or dimension, or null in an ok row."""
    expected = schema(1)
    for name in columns:
        if table.column_names.count(name) != 1:
            yield f"{name!r} is missing, or there is more than one"
            continue
        found = table.schema.field(name).type
        if name != "descriptor":
            fits = found == expected.field(name).type
        else:
            fits = pa.types.is_fixed_size_list(found) and found.value_type in (pa.float16(), pa.float32())
        if not fits:
            yield f"{name!r} is {found}"
        elif name == "descriptor" and dimension not in (None, found.list_size):
            yield f"{name!r} has {found.list_size} values a row, but {dimension} in the other shards"
    filled = pc.fill_null(pc.not_equal(table["status"], ERROR), True)
    for name in {"image_id", "status", "descriptor"}.intersection(columns):
        if pc.any(pc.and_(filled, pc.is_null(table[name]))).as_py():
            yield f"{name!r} is empty in a row that is not an error"


def _marked_by(mark: bytes, uri: str) -> Embedding:
    try:
        document = strict_json.loads(mark)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{uri!r}: the embedding in its metadata is not JSON; make this folder again") from error
    return from_json(document, repr(uri))


def dimension(folder: str, name: str) -> int:
    """The dimension of the shard's descriptors. Raises UserError as `read_shard` does."""
    return int(read_shard(folder, name, ["descriptor"])["descriptor"].type.list_size)


def vectors(column: Column) -> np.ndarray:
    """Converts a descriptor column without nulls into an array, float32 (N, D)."""
    array = _one_array(column)
    values: np.ndarray = array.flatten().to_numpy(zero_copy_only=False)
    found = to_float32(values) if values.dtype == np.float16 else values.astype(np.float32, copy=False)
    return found.reshape(len(array), array.type.list_size)


def _one_array(column: Column) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
