"""Reads and writes tables as Parquet or CSV files, on any storage.

`read` reads a table that any program wrote. If the file is faulty, the error message is one line that says what to do.
`as_text` turns a column of any type into strings, for ids, paths and labels. With `require_each_once` a job checks that
it neither lost nor repeated a row.
"""

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pat

from dim.errors import UserError
from dim.io import csv_files, files
from dim.io.storage import retried

SUFFIXES = (".parquet", ".csv")
ONE_TABLE = (
    "name one table; to join Parquet parts, run pyarrow.parquet.write_table(pyarrow.parquet.read_table(FOLDER), FILE)"
)
_OTHER_FORMATS = {
    (".xlsx", ".xls", ".ods"): "a spreadsheet's own file; save its sheet as 'CSV UTF-8'",
    (".gz", ".zip", ".zst", ".bz2", ".xz"): "compressed; unpack it first",
    (".jsonl", ".ndjson", ".json"): "JSON; make a table of it, as pandas.read_json(FILE, lines=True).to_csv(…) does",
    (".arrow", ".feather"): "Arrow's; make it Parquet, as pandas.read_feather(FILE).to_parquet(…) does",
}
# The most bytes and rows that a table may have per byte of its Parquet file. Real tables stay far below these limits. A
# decompression bomb, which is a small file that would fill the memory when it is read, exceeds them.
_MOST_BYTES_PER_BYTE, _MOST_ROWS_PER_BYTE = 1000, 20
_BATCH_BYTES, _BATCH_ROWS = 2**28, 1024  # limits of what `_read_in_batches` decodes at once


def is_table(uri: str) -> bool:
    """Whether `uri` ends in a suffix that `read` knows."""
    return uri.lower().endswith((*SUFFIXES, ".tsv"))


def read(uri: str) -> pa.Table:
    """Reads the Parquet, CSV or TSV file at `uri`. In CSV and TSV, every column is text and an empty cell is null.

    Raises UserError if the file is missing, has another suffix, has two columns of the same name, or can't be read.
    """
    if not is_table(uri):
        other = next((hint for endings, hint in _OTHER_FORMATS.items() if uri.lower().endswith(endings)), None)
        raise UserError(
            f"{uri!r} is neither .parquet nor .csv{f' but {other}' if other else '; give it one of these endings'}"
        )
    try:
        table = read_parquet(uri) if uri.lower().endswith(".parquet") else csv_files.read(uri)
        table.validate(full=True)
        if repeated := [name for name, count in Counter(table.column_names).items() if count > 1]:
            raise ValueError(f"it has the column {repeated[0]!r} twice")
    except UserError:
        raise
    except Exception as error:  # a damaged file can make Arrow raise anything
        if isinstance(error, OSError) and files.is_folder(uri):
            raise UserError(f"{uri!r} is a folder; {ONE_TABLE}") from error
        if isinstance(error, FileNotFoundError):
            raise UserError(f"no file {uri!r}") from error
        raise UserError(f"cannot read the table {uri!r}: {files.reason(error)}") from error
    return table


def write(uri: str, table: pa.Table) -> None:
    """Writes `table` to `uri`: as CSV if the name ends in .csv, else as Parquet."""
    if uri.endswith(".csv"):
        csv_files.write(uri, table)
        return
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    files.write_bytes(uri, sink.getvalue().to_pybytes())


@retried
def row_count(uri: str) -> int:
    """The number of rows, according to the footer of the Parquet file at `uri`."""
    with files.opened(uri) as file:
        return int(pq.read_metadata(file).num_rows)


def require_columns(table: pa.Table, names: Iterable[str], uri: str) -> None:
    """Raises UserError if `table`, which was read from `uri`, lacks one of the columns `names`."""
    for name in names:
        if name not in table.column_names:
            has = ", ".join(map(repr, table.column_names))
            raise UserError(f"{uri!r} has no column {name!r}; it has {has or 'none'}{embedded_photos_hint(table)}")


def embedded_photos_hint(table: pa.Table) -> str:
    """What to do about photos inside the table's cells, as in data sets of Hugging Face; "" if `table` has none."""
    for field in table.schema:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return (
                f". The column {field.name!r} holds the photos themselves; write each one's bytes to a file, and the "
                "files' names as column 'path'"
            )
    return ""


def require_each_once(asked: Iterable[str], given: Iterable[str], where: str) -> None:
    """Raises RuntimeError unless `given`, found at `where`, has each id in `asked` exactly once, and no other id.

    Both may be Arrow columns.
    """
    wanted, counts = _strings(asked).unique(), _strings(given).value_counts()
    found = counts.field("values")
    wrong = {
        "lost": wanted.filter(pc.invert(pc.is_in(wanted, found))),
        "more than once": found.filter(pc.greater(counts.field("counts"), 1)),
        "never asked for": found.filter(pc.invert(pc.is_in(found, wanted))),
    }
    said = [f"{len(ids)} {fault}, such as {pc.min(ids).as_py()!r}" for fault, ids in wrong.items() if len(ids)]
    if said:
        raise RuntimeError(f"the rows of {where} are not the {len(wanted)} asked for: {'; '.join(said)}")


def _strings(texts: Iterable[str]) -> pa.Array | pa.ChunkedArray:
    return texts if isinstance(texts, pa.Array | pa.ChunkedArray) else pa.array(texts, pa.string())


@retried
def read_parquet(uri: str, columns: list[str] | None = None, content: bytes | None = None) -> pa.Table:
    """Reads `columns`, by default all, of the Parquet file at `uri`. `content` may give the bytes of the file.

    Raises OSError or pyarrow.ArrowException if the file is missing or damaged, or claims more bytes or rows than a
    real table of its size can have.
    """
    with files.opened(uri) if content is None else pa.BufferReader(content) as file:
        metadata, size = pq.read_metadata(file), file.size()
        rows, claimed = _claimed_size(metadata)
        leaves = [metadata.schema.column(number) for number in range(metadata.num_columns)]
        fixed = sum(leaf.length for leaf in leaves if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY")
        _require_plausible(rows, max(claimed, rows * fixed), size)
        text = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        # One long text in a dictionary can stand for millions of cells. pyarrow's own limits don't prevent this, as
        # they apply only to the footer. So each row group is first read with its text as dictionaries. The dictionaries
        # tell how large the whole text is before any text is repeated.
        as_dictionaries = pq.ParquetFile(file, metadata=metadata, read_dictionary=text, page_checksum_verification=True)
        plain = pq.ParquetFile(file, metadata=metadata, page_checksum_verification=True)
        groups, expanded = [], 0
        try:
            for number in range(metadata.num_row_groups):
                groups.append(as_dictionaries.read_row_group(number, columns))
                expanded += sum(_text_bytes(part) for column in groups[-1] for part in column.chunks)
                _require_plausible(rows, expanded, size)
        except (pa.ArrowNotImplementedError, OSError) as error:
            if "implemented" not in str(error):
                raise
            # Arrow can't read delta-encoded text as dictionaries.
            return _read_in_batches(plain, columns, size)
        schema = plain.schema_arrow
        try:
            names = groups[0].column_names
            wanted = pa.schema([schema.field(name) for name in names], schema.metadata)
            return pa.concat_tables([group.cast(wanted) for group in groups])
        except (pa.ArrowNotImplementedError, KeyError, IndexError):
            # ArrowNotImplementedError means the type string_view, to which Arrow can't cast. A KeyError means two
            # columns of the same name, which `read` refuses. An IndexError means that the file has no row groups.
            return plain.read(columns)


def _read_in_batches(file: pq.ParquetFile, columns: list[str] | None, size: int) -> pa.Table:
    """Reads `columns` of `file` in batches that fit in memory even if each row repeats the longest text."""
    metadata = file.metadata
    # A text is at most as long as the data of its row group. The encoding DELTA_BYTE_ARRAY can repeat it in each row.
    longest = max((metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)), default=0)
    rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, longest)))
    batches, expanded = [], 0
    for batch in file.iter_batches(rows, columns=columns):
        batches.append(batch)
        expanded += batch.nbytes
        _require_plausible(metadata.num_rows, expanded, size)
    schema = batches[0].schema if batches else file.schema_arrow
    return pa.Table.from_batches(batches, schema).combine_chunks()


def _claimed_size(metadata: pq.FileMetaData) -> tuple[int, int]:
    """How many rows and bytes the metadata claims. If the file and its row groups disagree, the larger one counts."""
    # Don't call `metadata.row_group(n).column(m)`: if the metadata is damaged, that call ends the process.
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows = max(metadata.num_rows, sum(group.num_rows for group in groups))
    return rows, sum(group.total_byte_size for group in groups)


def _require_plausible(rows: int, expanded: int, size: int) -> None:
    if expanded > _MOST_BYTES_PER_BYTE * size or rows > _MOST_ROWS_PER_BYTE * size:
        raise pa.ArrowInvalid(f"it claims {rows:,} rows and {expanded:,} bytes, in a file of {size:,}")


def _text_bytes(values: pa.Array) -> int:
    """The bytes of text in `values` after decoding its dictionaries, when each cell has its own copy of its text."""
    if pa.types.is_dictionary(values.type):
        return pc.sum(pc.binary_length(values.dictionary).cast(pa.int64()).take(values.indices)).as_py() or 0
    if pa.types.is_struct(values.type):
        return sum(map(_text_bytes, values.flatten()))
    if pa.types.is_map(values.type):
        return _text_bytes(values.keys) + _text_bytes(values.items)
    return _text_bytes(values.flatten()) if hasattr(values, "flatten") and pa.types.is_nested(values.type) else 0


# For each float type, the limit below which it holds every whole number exactly.
_EXACT_BELOW = {pa.float16(): 2**11, pa.float32(): 2**24, pa.float64(): 2**53}


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`column` as strings: the integer 3, the float 3.0 and the decimal 3.00 all become "3". NaN becomes null.

    Raises pyarrow.ArrowException if the type can't be text, if text is not UTF-8, if a number is infinite, or if a
    number is so large that its type may have rounded it. By rounding, two different numbers could become the same text.
    """
    column = decode_dictionary(column)
    if pat.is_floating(column.type):
        return _floats_as_text(column)
    text = column.cast(pa.string())
    return pc.replace_substring_regex(text, r"\.0+$", "") if pat.is_decimal(column.type) else text


def _floats_as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    limit = _EXACT_BELOW[column.type]
    values = column.cast(pa.float64())
    values = pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)
    large = pc.greater_equal(pc.abs(values), limit)
    if (row := pc.index(large, True).as_py()) >= 0:
        raise pa.ArrowInvalid(
            f"row {row + 1} has {values[row]}, which {column.type} can't hold exactly; store it as text"
        )
    whole = pc.equal(values, pc.floor(values))
    numbers = pc.if_else(whole, values, 0).cast(pa.int64()).cast(pa.string())
    return pc.if_else(whole, numbers, column.cast(pa.string()))


def decode_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`column` with values in place of the dictionary codes that pandas writes for categories."""
    return column.cast(column.type.value_type) if pat.is_dictionary(column.type) else column


def empty_as_null(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """`text` with null in place of strings that are empty or hold only spaces."""
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(text), ""), pa.scalar(None, pa.string()), text)
