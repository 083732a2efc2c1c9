"""Tables as Parquet or CSV, on any storage."""

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from dim import files
from dim.errors import UserError
from dim.storage import patient

# For each byte of its file, a table may have so many bytes and rows: no real one has, but one made to fill the memory.
MOST_UNFOLDED, MOST_ROWS = 1000, 20
SUFFIXES = (".parquet", ".csv")


def read(uri: str) -> pa.Table:
    """The table at `uri`, Parquet or CSV by its ending; an empty CSV cell is null, every CSV column text.

    Raises UserError where the file is missing, is neither, or cannot be read.
    """
    if not uri.endswith(SUFFIXES):
        raise UserError(f"{uri!r} is neither .parquet nor .csv; name the table by one of these endings")
    try:
        table = read_parquet(uri) if uri.endswith(".parquet") else _read_csv(uri)
        table.validate(full=True)
        if repeated := [name for name, count in Counter(table.column_names).items() if count > 1]:
            raise ValueError(f"it has the column {repeated[0]!r} twice")
    except FileNotFoundError as error:
        raise UserError(f"no file {uri!r}") from error
    except UserError:
        raise
    except Exception as error:  # whatever reading a stranger's file raises, the file is at fault
        raise UserError(f"cannot read the table {uri!r}: {files.reason(error)}") from error
    return table


def require_columns(table: pa.Table, names: Iterable[str], uri: str) -> None:
    """Raises UserError unless the `table` at `uri` has columns of these `names`."""
    for name in names:
        if name not in table.column_names:
            has = ", ".join(map(repr, table.column_names))
            raise UserError(f"{uri!r} has no column {name!r}; it has {has or 'none'}")


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
        _require_plausible(rows, claimed, size)
        leaves = [about.schema.column(number) for number in range(about.num_columns)]
        text = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        # A dictionary may have a long text that its column repeats often: so read, it is counted before it is repeated.
        folding = pq.ParquetFile(file, metadata=about, read_dictionary=text, page_checksum_verification=True)
        folded = folding.read(columns)
        _require_plausible(rows, sum(_text_bytes(part) for column in folded for part in column.chunks), size)
        plain = pq.ParquetFile(file, metadata=about, page_checksum_verification=True)
        schema = plain.schema_arrow
        try:
            return folded.cast(pa.schema([schema.field(name) for name in folded.column_names], schema.metadata))
        except (pa.ArrowNotImplementedError, KeyError):  # views of text; a column twice, of which `read` complains
            return plain.read(columns)


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


@patient
def _read_csv(uri: str) -> pa.Table:
    with files.opened(uri) as file:
        # Arrow's own memory: a thread of its that ends late could not give back Python's once Python is ending.
        content = file.read_buffer()
    # Columns are read as text: "007" is an id, not the number 7. Callers cast the columns that are numbers.
    header = pacsv.open_csv(pa.BufferReader(content)).schema.names
    return pacsv.read_csv(
        pa.BufferReader(content),
        parse_options=pacsv.ParseOptions(newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=True, null_values=[""]
        ),
    )


def write(uri: str, table: pa.Table) -> None:
    """Writes `table` to `uri` as Parquet or CSV by its ending, at once."""
    sink = pa.BufferOutputStream()
    if uri.endswith(".csv"):
        pacsv.write_csv(table, sink)
    else:
        pq.write_table(table, sink)
    files.write_bytes(uri, sink.getvalue().to_pybytes())
