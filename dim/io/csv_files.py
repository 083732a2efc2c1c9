"""Reads CSV and TSV files of any program, and writes CSV files that are safe to open in a spreadsheet.

A label or a file name may begin with =, + or the like, and a spreadsheet runs a cell with such a text as a formula. So
`write_escaped` puts an apostrophe before the text, as OWASP advises; the spreadsheet then shows it as text. `unescaped`
removes the apostrophe. Manifests are written without apostrophes, because other programs open the files named there.
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
from dim.io.storage import retried

# The first bytes of files that are not text, and what to do with such a file.
_NOT_TEXT = {
    b"PK\x03\x04": "it is an Excel workbook or another zip archive; save its sheet as 'CSV UTF-8'",
    b"\xd0\xcf\x11\xe0": "it is an Excel workbook; save its sheet as 'CSV UTF-8'",
    b"\x1f\x8b": "it is compressed; unpack it first, with gunzip",
    b"PAR1": "it is Parquet; let its name end in .parquet",
}
# Byte order marks and their encodings. UTF-32 comes first, because its mark begins with the mark of UTF-16.
_MARKS = dict.fromkeys((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32")
_MARKS |= dict.fromkeys((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16")


@retried
def read(uri: str) -> pa.Table:
    """Reads the table at `uri` with every column as text and empty cells as null.

    The encoding is UTF-8 unless a byte order mark says otherwise. The delimiter of a .tsv file is the tab. The
    delimiter of any other file is the first of comma, tab and semicolon that occurs in the header. Raises ValueError if
    the file is not text or a quotation mark is not closed, and OSError or pyarrow.ArrowException if it can't be read.
    """
    with files.opened(uri) as file:
        # The buffer must be Arrow's: an Arrow thread may outlive the interpreter, and could not free a Python buffer.
        content = _as_utf8(file.read_buffer())
    header = bytes(content[: 2**20]).partition(b"\n")[0]
    if b"\0" in header:
        raise ValueError("its header has NULs in it, as UTF-16 has; save it as UTF-8")
    delimiters = "\t" if uri.lower().endswith(".tsv") else ",\t;"
    delimiter = next((mark for mark in delimiters if mark.encode() in header), delimiters[0])
    parsing = pacsv.ParseOptions(newlines_in_values=True, delimiter=delimiter)
    # "007" is an id, not the number 7. Callers cast the columns that hold numbers.
    names = pacsv.open_csv(pa.BufferReader(content), parse_options=parsing).schema.names
    converting = pacsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    table = pacsv.read_csv(pa.BufferReader(content), parse_options=parsing, convert_options=converting)
    if any(pc.any(pc.match_substring(column, "\n")).as_py() for column in table.columns):
        _require_closed(content, delimiter)
    return table


def lines(file: pa.NativeFile, keep_empty: bool = False) -> pacsv.CSVStreamingReader:
    """Reads the text `file`, opened for reading, in batches with the column `line`: strings, as they stand there.

    Raises pyarrow.ArrowException if the file is not UTF-8 text.
    """
    return pacsv.open_csv(
        file,
        pacsv.ReadOptions(column_names=["line"], block_size=2**24),
        # A separator that no text has, so that each line is one cell.
        pacsv.ParseOptions(delimiter="\x1f", quote_char=False, ignore_empty_lines=not keep_empty),
        pacsv.ConvertOptions(column_types={"line": pa.string()}, strings_can_be_null=False),
    )


def write(uri: str, table: pa.Table) -> None:
    """Writes `table` to `uri` as CSV."""
    sink = pa.BufferOutputStream()
    pacsv.write_csv(table, sink)
    files.write_bytes(uri, sink.getvalue().to_pybytes())


def _require_closed(content: pa.Buffer, delimiter: str) -> None:
    """Raises ValueError if a quotation mark is not closed: Arrow would read all text after the mark as one cell."""
    last_line = 0
    with io.TextIOWrapper(pa.BufferReader(content), "utf-8", newline="") as text:
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            for _ in rows:
                last_line = rows.line_num
        except csv.Error as error:
            raise ValueError(
                f"a quotation mark in line {last_line + 1} is not closed in its cell; close it, or write it twice "
                "within quotation marks"
            ) from error


def _as_utf8(content: pa.Buffer) -> pa.Buffer:
    """`content` encoded as UTF-8. Raises ValueError if it is not text."""
    start = bytes(content[:4])
    for magic, hint in _NOT_TEXT.items():
        if start.startswith(magic):
            raise ValueError(hint)
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


# Some programs drop invisible characters at the beginning of a cell, so a formula may follow them.
_FORMULA = re.compile(r"[\t\r\n]|[\s\u200b\ufeff]*[=+\-@＝＋－＠]")
_NUMBER = re.compile(r" *[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def write_escaped(uri: str, table: pa.Table) -> None:
    """Writes `table` to `uri` as CSV. Each cell of a text column is `escaped`."""
    for index, name in enumerate(table.column_names):
        if pat.is_string(table[name].type) or pat.is_large_string(table[name].type):
            cells = [escaped(cell) for cell in table[name].to_pylist()]
            table = table.set_column(index, name, pa.array(cells, pa.string()))
    write(uri, table)


def escaped(text: str | None) -> str | None:
    """Puts an apostrophe before `text` if a spreadsheet would run the text, or if `unescaped` would shorten it."""
    return f"'{text}" if text and _is_formula(text) else text


def unescaped(text: str | None) -> str | None:
    """Removes the apostrophe that `escaped` put before `text`."""
    return text[1:] if text and text[0] == "'" and _is_formula(text) else text


def _is_formula(text: str) -> bool:
    """Whether a spreadsheet would run `text` as a formula if the apostrophes at its beginning were removed."""
    bare = text.lstrip("'")
    return _FORMULA.match(bare) is not None and not _NUMBER.fullmatch(bare)
