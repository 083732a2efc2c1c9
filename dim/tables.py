"""Tables as Parquet or CSV, on any storage."""

from collections import Counter

import pyarrow as pa
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


@patient
def read_parquet(uri: str, columns: list[str] | None = None) -> pa.Table:
    """The table at `uri`, or some of its columns. Raises OSError or an Arrow error where it is missing or damaged."""
    filesystem, path = files.locate(uri)
    with filesystem.open_input_file(path) as file:
        found = pq.ParquetFile(file, page_checksum_verification=True)
        size, about = file.size(), found.metadata
        claimed = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
        if claimed > MOST_UNFOLDED * size or about.num_rows > MOST_ROWS * size:
            raise pa.ArrowInvalid(f"it claims {about.num_rows:,} rows and {claimed:,} bytes, in a file of {size:,}")
        return found.read(columns)


def _read_csv(uri: str) -> pa.Table:
    content = pa.py_buffer(files.read_bytes(uri))
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
