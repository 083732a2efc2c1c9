"""CSV files for people. A spreadsheet runs a cell that begins with = or +, say, and labels and file names may begin so.

Such a text is written with an apostrophe before it, as OWASP advises (CSV injection); a spreadsheet then shows it as
text. `unescaped` takes the apostrophe off again. A manifest is not written so: what stands there is the photo's name.
"""

import re

import pyarrow as pa
import pyarrow.types as pat

from dim import delimited

# Some programs take off what is not seen at the beginning while they import.
_RUN = re.compile(r"[\t\r\n]|[\s\u200b\ufeff]*[=+\-@＝＋－＠]")
_NUMBER = re.compile(r" *[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def write(uri: str, table: pa.Table) -> None:
    """Writes `table` to `uri` as CSV, its texts escaped."""
    for place, name in enumerate(table.column_names):
        if pat.is_string(table[name].type) or pat.is_large_string(table[name].type):
            cells = [escaped(cell) for cell in table[name].to_pylist()]
            table = table.set_column(place, name, pa.array(cells, pa.string()))
    delimited.write(uri, table)


def escaped(text: str | None) -> str | None:
    """`text`, with an apostrophe before it if a spreadsheet would run it (or if `unescaped` would take one off)."""
    return f"'{text}" if text and _is_run(text) else text


def unescaped(text: str | None) -> str | None:
    """The text of which `escaped` has made `text`."""
    return text[1:] if text and text[0] == "'" and _is_run(text) else text


def _is_run(text: str) -> bool:
    bare = text.lstrip("'")
    return _RUN.match(bare) is not None and not _NUMBER.fullmatch(bare)
