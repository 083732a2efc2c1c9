"""Tables as Parquet or CSV, on any storage.

Row conservation: what goes into a job comes out of it, each row once.

How a column of a table, whatever its type, becomes text: ids, paths, labels.
"""

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pat

from dim.errors import UserError
from dim.io import csv_files, files
from dim.io.storage import patient

# For each byte of its file, a table may have so many bytes and rows: no real one has, but one made to fill the memory.
MOST_UNFOLDED, MOST_ROWS = 1000, 20
# A group of rows of a Parquet file is decoded at once only where it can't become larger than this.
_BATCH_BYTES, _BATCH_ROWS = 2**28, 1024
SUFFIXES = (".parquet", ".csv")
ONE_TABLE = (
    "name one table; parts in Parquet become one by "
    "pyarrow.parquet.write_table(pyarrow.parquet.read_table(FOLDER), FILE)"
)
_OTHERS = {
    (".xlsx", ".xls", ".ods"): "a spreadsheet's own file; save its sheet as 'CSV UTF-8'",
    (".gz", ".zip", ".zst", ".bz2", ".xz"): "compressed; unpack it first",
    (".jsonl", ".ndjson", ".json"): "JSON; make a table of it, as pandas.read_json(FILE, lines=True).to_csv(…) does",
    (".arrow", ".feather"): "Arrow's; make it Parquet, as pandas.read_feather(FILE).to_parquet(…) does",
}


def is_table(uri: str) -> bool:
    """Whether `uri` ends as the name of a table that `read` can read."""
    return uri.lower().endswith((*SUFFIXES, ".tsv"))


def read(uri: str) -> pa.Table:
    """The table at `uri`, Parquet or CSV (TSV) by its ending; an empty CSV cell is null, every CSV column text.

    Raises UserError where the file is missing, is neither, or cannot be read.
    """
    if not is_table(uri):
        other = next((what for endings, what in _OTHERS.items() if uri.lower().endswith(endings)), None)
        raise UserError(
            f"{uri!r} is neither .parquet nor .csv{f' but {other}' if other else '; name the table by such an ending'}"
        )
    try:
        table = read_parquet(uri) if uri.lower().endswith(".parquet") else csv_files.read(uri)
        table.validate(full=True)
        if repeated := [name for name, count in Counter(table.column_names).items() if count > 1]:
            raise ValueError(f"it has the column {repeated[0]!r} twice")
    except UserError:
        raise
    except Exception as error:  # whatever reading a stranger's file raises, the file is at fault
        if isinstance(error, OSError) and files.is_folder(uri):
            raise UserError(f"{uri!r} is a folder; {ONE_TABLE}") from error
        if isinstance(error, FileNotFoundError):
            raise UserError(f"no file {uri!r}") from error
        raise UserError(f"cannot read the table {uri!r}: {files.reason(error)}") from error
    return table


def require_columns(table: pa.Table, names: Iterable[str], uri: str) -> None:
    """Raises UserError unless the `table` at `uri` has columns of these `names`."""
    for name in names:
        if name not in table.column_names:
            has = ", ".join(map(repr, table.column_names))
            raise UserError(f"{uri!r} has no column {name!r}; it has {has or 'none'}{photos_within(table)}")


def photos_within(table: pa.Table) -> str:
    """What to do where the photos themselves stand in the table, as in Hugging Face's data sets; "" elsewhere."""
    for field in table.schema:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return (
                f". The column {field.name!r} holds the photos themselves; write each one's bytes to a file, and the "
                "files' names as column 'path'"
            )
    return ""


@patient
def rows(uri: str) -> int:
    """How many rows the Parquet file at `uri` has."""
    with files.opened(uri) as file:
        return int(pq.read_metadata(file).num_rows)


@patient
def read_parquet(uri: str, columns: list[str] | None = None, content: bytes | None = None) -> pa.Table:
    """The table at `uri`, or some of its columns, from its `content` where that is at hand.

    Raises OSError or an Arrow error where it is missing or damaged.
    """
    with files.opened(uri) if content is None else pa.BufferReader(content) as file:
        about, size = pq.read_metadata(file), file.size()
        rows, claimed = _claimed(about)
        leaves = [about.schema.column(number) for number in range(about.num_columns)]
        fixed = sum(leaf.length for leaf in leaves if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY")
        _require_plausible(rows, max(claimed, rows * fixed), size)
        text = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        # A dictionary may have a long text that its column repeats often: so read, it is counted before it is repeated.
        folding = pq.ParquetFile(file, metadata=about, read_dictionary=text, page_checksum_verification=True)
        plain = pq.ParquetFile(file, metadata=about, page_checksum_verification=True)
        try:
            folded = folding.read(columns)
        except (pa.ArrowNotImplementedError, OSError) as error:
            if "implemented" not in str(error):
                raise
            # Arrow reads neither delta encodings nor lists of text from several groups of rows into dictionaries.
            return _in_batches(plain, columns, size)
        _require_plausible(rows, sum(_text_bytes(part) for column in folded for part in column.chunks), size)
        schema = plain.schema_arrow
        try:
            return folded.cast(pa.schema([schema.field(name) for name in folded.column_names], schema.metadata))
        except (pa.ArrowNotImplementedError, KeyError):  # views of text; a column twice, of which `read` complains
            return plain.read(columns)


def _in_batches(file: pq.ParquetFile, columns: list[str] | None, size: int) -> pa.Table:
    """The table, so few rows decoded at once that a text that each of them repeats can't fill the memory."""
    about = file.metadata
    # No text is longer than all that is stored; of each, the next may repeat the whole (DELTA_BYTE_ARRAY).
    longest = max((about.row_group(number).total_byte_size for number in range(about.num_row_groups)), default=0)
    rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, longest)))
    batches, unfolded = [], 0
    for batch in file.iter_batches(rows, columns=columns):
        batches.append(batch)
        unfolded += batch.nbytes
        _require_plausible(about.num_rows, unfolded, size)
    schema = batches[0].schema if batches else file.schema_arrow
    return pa.Table.from_batches(batches, schema).combine_chunks()


def _claimed(about: pq.FileMetaData) -> tuple[int, int]:
    """The rows, of the whole or of its groups, and the bytes that a file claims to hold."""
    # What its columns claim is not asked: on a file that is damaged there, pyarrow's `column` ends the process.
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    return max(about.num_rows, sum(group.num_rows for group in groups)), sum(group.total_byte_size for group in groups)


def _require_plausible(rows: int, unfolded: int, size: int) -> None:
    if unfolded > MOST_UNFOLDED * size or rows > MOST_ROWS * size:
        raise pa.ArrowInvalid(f"it claims {rows:,} rows and {unfolded:,} bytes, in a file of {size:,}")


def _text_bytes(values: pa.Array) -> int:
    """The bytes of the text in `values`, where it stands in dictionaries, written out."""
    if pa.types.is_dictionary(values.type):
        return pc.sum(pc.binary_length(values.dictionary).cast(pa.int64()).take(values.indices)).as_py() or 0
    if pa.types.is_struct(values.type):
        return sum(map(_text_bytes, values.flatten()))
    if pa.types.is_map(values.type):
        return _text_bytes(values.keys) + _text_bytes(values.items)
    return _text_bytes(values.flatten()) if hasattr(values, "flatten") and pa.types.is_nested(values.type) else 0


def write(uri: str, table: pa.Table) -> None:
    """Writes `table` to `uri` as Parquet or CSV by its ending, at once."""
    if uri.endswith(".csv"):
        csv_files.write(uri, table)
        return
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    files.write_bytes(uri, sink.getvalue().to_pybytes())


def require_each_once(asked: Iterable[str], given: Iterable[str], where: str) -> None:
    """Raises RuntimeError, naming `where`, unless the ids `given` are those `asked` for, each once, in any order."""
    wanted, counts = set(asked), Counter(given)
    wrong = {
        "lost": wanted - counts.keys(),
        "more than once": {image_id for image_id, count in counts.items() if count > 1},
        "never asked for": counts.keys() - wanted,
    }
    found = [f"{len(ids)} {what}, such as {min(ids)!r}" for what, ids in wrong.items() if ids]
    if found:
        raise RuntimeError(f"the rows of {where} are not the {len(wanted)} asked for: {'; '.join(found)}")


# The smallest whole number that is not the only one that rounds to its float.
_INEXACT = {pa.float16(): 2**11, pa.float32(): 2**24, pa.float64(): 2**53}


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`column` as strings: a whole number without decimals whatever its type (3, 3.0 and the decimal 3.00 are "3"),
    NaN null.

    Raises an Arrow error for a type that has no text, for text that is not UTF-8, and for a number that is infinite, or
    too large for its type to hold exactly: two of these could be one text.
    """
    column = plain(column)
    if pat.is_floating(column.type):
        return _of_floats(column)
    text = column.cast(pa.string())
    return pc.replace_substring_regex(text, r"\.0+$", "") if pat.is_decimal(column.type) else text


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`column`, the values of a dictionary written out, as of pandas' categories."""
    return column.cast(column.type.value_type) if pat.is_dictionary(column.type) else column


def empty_as_null(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """`text`, null where there is nothing or nothing but spaces."""
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(text), ""), pa.scalar(None, pa.string()), text)


def _of_floats(column: pa.ChunkedArray) -> pa.ChunkedArray:
    limit = _INEXACT[column.type]
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
