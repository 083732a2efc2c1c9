"""CSV files for people: a spreadsheet runs no cell of them, and reading them back loses nothing."""

import csv

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dim.io import csv_files, tables

RUN = [
    "=1+1",
    "+1-x",
    "-cmd|'/C calc'!A0",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1",
    "＋1",
    "－x",
    "＠x",
    "-",
    "=",
    "'=1",
    " =1",
    "\u00a0 @x",
    "\ufeff=1",
    "\u200b＝1",
    "\u3000+x",
]
SAFE = ["", "a=b", "milk", "-1", "+1.5", "-.5e-3", "-12.", "'", "'milk", "''", " -1", " a=1"]


@pytest.mark.parametrize("text", RUN)
def test_what_a_spreadsheet_would_run(text):
    assert csv_files.escaped(text) == "'" + text


@pytest.mark.parametrize("text", SAFE)
def test_what_it_would_not_run(text):
    assert csv_files.escaped(text) == text


@given(st.none() | st.text() | st.text(alphabet="'=+-@\t\r1.e"))
@example("'=1")
@example("'-1")
@example("''=1")
def test_nothing_is_lost(text):
    assert csv_files.unescaped(csv_files.escaped(text)) == text
    assert not text or not csv_files.escaped(text).startswith(("=", "@", "\t", "\r"))


def test_a_file(tmp_path):
    uri = str(tmp_path / "a.csv")
    table = pa.table(
        {"label": ["=1", None, "b"], "score": [-0.5, 1.0, None], "path": ["-1", "+x", 'a,"b'], "n": [-1] * 3}
    )
    csv_files.write_escaped(uri, table)
    with open(uri, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["label", "score", "path", "n"],
        ["'=1", "-0.5", "-1", "-1"],
        ["", "1", "'+x", "-1"],
        ["b", "", 'a,"b', "-1"],
    ]


def test_a_manifest_is_not_escaped(tmp_path):
    uri = str(tmp_path / "m.csv")
    table = pa.table({"image_id": ["=1", "'=2", "-x"], "path": ["@a.jpg", "+b.jpg", "\tc.jpg"]})
    tables.write(uri, table)
    assert tables.read(uri) == table
