"""Tables as delimited text (CSV, TSV), as spreadsheets and other programs save them: their columns as text.

CSV files for people. A spreadsheet runs a cell that begins with = or +, say, and labels and file names may begin so.

Such a text is written with an apostrophe before it, as OWASP advises (CSV injection); a spreadsheet then shows it as
text. `unescaped` takes the apostrophe off again. A manifest is not written so: what stands there is the photo's name.
"""

import codecs
import csv
import io
import re

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.types as pat

from dim.io import files
from dim.io.storage import patient

# How files begin that are no text, whatever they are called.
_NO_TEXT = {
    b"PK\x03\x04": "it is an Excel workbook or another zip archive; save its sheet as 'CSV UTF-8'",
    b"\xd0\xcf\x11\xe0": "it is an Excel workbook; save its sheet as 'CSV UTF-8'",
    b"\x1f\x8b": "it is compressed; unpack it first, with gunzip",
    b"PAR1": "it is Parquet; let its name end in .parquet",
}
# A mark of UTF-32 starts with that of UTF-16.
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16"}
_MARKS |= {codecs.BOM_UTF16_BE: "utf-16"}


@patient
def read(uri: str) -> pa.Table:
    """The table at `uri`, every column text, an empty cell null.

    Its encoding is UTF-8, or what the mark at its beginning says. Its header tells what stands between its cells: a
    comma, or, where it has none, a tab or a semicolon. Raises ValueError for a file that is no such text; OSError or an
    Arrow error where it is missing or damaged.
    """
    with files.opened(uri) as file:
        # Arrow's own memory: a thread of its that ends late could not give back Python's once Python is ending.
        content = _as_utf8(file.read_buffer())
    header = bytes(content[: 2**20]).partition(b"\n")[0]
    if b"\0" in header:
        raise ValueError("its header has NULs in it, as UTF-16 has; save it as UTF-8")
    parsing = pacsv.ParseOptions(
        newlines_in_values=True, delimiter="\t" if uri.lower().endswith(".tsv") else _delimiter(header)
    )
    # Columns are read as text: "007" is an id, not the number 7. Callers cast the columns that are numbers.
    names = pacsv.open_csv(pa.BufferReader(content), parse_options=parsing).schema.names
    converting = pacsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    table = pacsv.read_csv(pa.BufferReader(content), parse_options=parsing, convert_options=converting)
    if any(pc.any(pc.match_substring(column, "\n")).as_py() for column in table.columns):
        _require_closed(content, parsing.delimiter)
    return table


def write(uri: str, table: pa.Table) -> None:
    """Writes `table` to `uri` as CSV."""
    sink = pa.BufferOutputStream()
    pacsv.write_csv(table, sink)
    files.write_bytes(uri, sink.getvalue().to_pybytes())


def _require_closed(content: pa.Buffer, delimiter: str) -> None:
    """Raises ValueError where a cell is quoted and its end is not: Arrow would take the rows after it for its text."""
    ended = 0
    with io.TextIOWrapper(pa.BufferReader(content), "utf-8", newline="") as text:
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            for _ in rows:
                ended = rows.line_num
        except csv.Error as error:
            raise ValueError(
                f"a quotation mark in line {ended + 1} is not closed in its cell; close it, or write it twice within "
                "quotation marks"
            ) from error


def _as_utf8(content: pa.Buffer) -> pa.Buffer:
    start = bytes(content[:4])
    for magic, what in _NO_TEXT.items():
        if start.startswith(magic):
            raise ValueError(what)
    encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8")
    try:
        text = str(memoryview(content), encoding)
    except UnicodeDecodeError as error:
        line = bytes(content[: error.start]).count(b"\n") + 1
        raise ValueError(
            f"byte {error.object[error.start]:#x} in line {line} is not {encoding.upper()}; save it as UTF-8 "
            "(in Excel as 'CSV UTF-8')"
        ) from error
    if encoding == "utf-8":
        return content
    copied = pa.BufferOutputStream()
    copied.write(text.encode())
    return copied.getvalue()


def _delimiter(header: bytes) -> str:
    return next((mark for mark in (",", "\t", ";") if mark.encode() in header), ",")


# Some programs take off what is not seen at the beginning while they import.
_RUN = re.compile(r"[\t\r\n]|[\s\u200b\ufeff]*[=+\-@＝＋－＠]")
_NUMBER = re.compile(r" *[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def write_escaped(uri: str, table: pa.Table) -> None:
    """Writes `table` to `uri` as CSV, its texts escaped."""
    for place, name in enumerate(table.column_names):
        if pat.is_string(table[name].type) or pat.is_large_string(table[name].type):
            cells = [escaped(cell) for cell in table[name].to_pylist()]
            table = table.set_column(place, name, pa.array(cells, pa.string()))
    write(uri, table)


def escaped(text: str | None) -> str | None:
    """`text`, with an apostrophe before it if a spreadsheet would run it (or if `unescaped` would take one off)."""
    return f"'{text}" if text and _is_run(text) else text


def unescaped(text: str | None) -> str | None:
    """The text of which `escaped` has made `text`."""
    return text[1:] if text and text[0] == "'" and _is_run(text) else text


def _is_run(text: str) -> bool:
    bare = text.lstrip("'")
    return _RUN.match(bare) is not None and not _NUMBER.fullmatch(bare)
