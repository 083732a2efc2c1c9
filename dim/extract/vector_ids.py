"""The ids of descriptors made elsewhere: the lines of a text file, or a column of a Parquet file."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dim.data import manifest
from dim.errors import UserError, quoted
from dim.io import csv_files, files

NAMES = ("image_id", "id", "image_path", "path", "key", "filename", "name")  # usual names of a column of ids
_COMPARED = 2**18  # sorted ids that are compared at a time


def schema_of(uri: str) -> tuple[pa.Schema, int]:
    """The schema and the number of rows of the Parquet file `uri`. Raises UserError if it can't be read."""
    try:
        with files.opened(uri) as file:
            found = pq.ParquetFile(file)
            return found.schema_arrow, found.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {uri!r}: {files.reason(error)}") from error


def of_table(uri: str, column: str | None) -> pa.Array:
    """The ids in the Parquet file `uri`: its `column` or, by default, its first column with one of the usual `NAMES`.

    Raises UserError if there is no such column, or if it can't be text.
    """
    schema, _ = schema_of(uri)
    chosen = column or next((name for name in NAMES if name in schema.names), None)
    if chosen is None or chosen not in schema.names:
        has = ", ".join(map(repr, schema.names))
        raise UserError(f"{uri!r} has no column {chosen or 'image_id'!r} of ids; name it by --id-column (it has {has})")
    with files.opened(uri) as file:
        table = pq.ParquetFile(file).read([chosen])
    return manifest.text_column(uri, table, chosen).combine_chunks()


def of_lines(uri: str) -> pa.Array:
    """The ids in the text file `uri`, one a line. Raises UserError if the file is missing or is not UTF-8 text."""
    try:
        with files.opened(uri) as file:
            found = csv_files.lines(file, keep_empty=True).read_all()
    except FileNotFoundError as error:
        raise UserError(f"no file {uri!r}; --ids is a text file with one id a line") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read the ids in {uri!r}: {files.reason(error)}") from error
    return found["line"].combine_chunks()


def require_count(uri: str, ids: int, vectors: str, rows: int) -> None:
    """Raises UserError unless the number of `ids`, read from `uri`, is that of the `rows` of `vectors`."""
    if ids != rows:
        raise UserError(f"{uri!r} has {ids} ids, and {vectors!r} {rows} rows; each row needs one id, in the same order")


def require_ids(ids: pa.Array, source: str) -> None:
    """Raises UserError if one of `ids` is null, empty or repeated. `source` is what they were read from."""
    empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(ids), ""), True)
    if (row := pc.index(empty, True).as_py()) >= 0:
        raise UserError(f"{source!r}: row {row + 1} has no id")
    order = pc.sort_indices(ids)  # needs less memory than a hash table of all ids
    for start in range(0, len(ids) - 1, _COMPARED):
        block = order[start : start + _COMPARED + 1]
        ordered = ids.take(block)
        if (place := pc.index(pc.equal(ordered[1:], ordered[:-1]), True).as_py()) >= 0:
            one, other = sorted((block[place].as_py() + 1, block[place + 1].as_py() + 1))
            raise UserError(f"{source!r}: rows {one} and {other} have the same id {quoted(ordered[place].as_py())}")
