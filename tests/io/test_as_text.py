"""Columns of every type become text."""

import datetime
import decimal
import math

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim.data import manifest
from dim.errors import UserError
from dim.io import tables
from dim.io.tables import as_text

NAN = math.nan
READ = {
    "float": (pa.array([3.0, NAN, None, -0.0, 0.5, 123456789012.0]), ["3", None, None, "0", "0.5", "123456789012"]),
    "float32": (pa.array([3, NAN, 0.1], pa.float32()), ["3", None, "0.1"]),
    "float16": (pa.array([3, 1.5], pa.float16()), ["3", "1.5"]),
    "int": (pa.array([3, None], pa.int8()), ["3", None]),
    "uint64": (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
    "decimal": (pa.array([decimal.Decimal("3.00"), decimal.Decimal("30.10"), None]), ["3", "30.10", None]),
    "bool": (pa.array([True, False, None]), ["true", "false", None]),
    "date": (pa.array([datetime.date(2026, 11, 27)]), ["2026-11-27"]),
    "time": (pa.array([datetime.datetime(2026, 11, 27)], pa.timestamp("s")), ["2026-11-27 00:00:00"]),
    "categories": (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
    "float categories": (pa.array([3.0, NAN]).dictionary_encode(), ["3", None]),
    "large_string": (pa.array(["ü", None], pa.large_string()), ["ü", None]),
    "string_view": (pa.array(["ü", None], pa.string_view()), ["ü", None]),
    "binary": (pa.array(["ü".encode()]), ["ü"]),
    "fixed binary": (pa.array([b"abc"], pa.binary(3)), ["abc"]),
    "null": (pa.nulls(2), [None, None]),
}


@pytest.mark.parametrize("kind", READ)
def test_a_type_that_is_read(kind):
    column, expected = READ[kind]
    text = as_text(pa.chunked_array([column, column[:0]]))
    assert text.type == pa.string() and text.to_pylist() == expected


REFUSED = {
    "list": (pa.array([["a"]]), "Unsupported cast"),
    "struct": (pa.array([{"a": 1}]), "Unsupported cast"),
    "binary": (pa.array([b"\xff"]), "Invalid UTF8"),
    "infinite": (pa.array([math.inf]), "row 1 has inf, which double can't hold exactly"),
    "float": (pa.array([2.0**53]), "row 1 has 9007199254740992.0, which double can't hold exactly"),
    "float32": (pa.array([2.0**24], pa.float32()), "row 1 has 16777216.0, which float can't hold exactly"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", ["image_id", "path", "label", "split", "role"])
def test_a_type_that_is_refused(kind, name):
    column, message = REFUSED[kind]
    columns = {"image_id": ["a"], "path": ["a.jpg"]} | {name: column}
    with pytest.raises(UserError, match=f"'m': column '{name}' must be text: .*{message}") as caught:
        manifest.checked("m", pa.table(columns))
    assert f"(its type is {column.type})" in str(caught.value)


@given(st.lists(st.integers(-(2**53) + 1, 2**53 - 1), min_size=1))
def test_whole_numbers_are_the_same_text_whatever_their_type(numbers):
    of_floats = as_text(pa.chunked_array([pa.array([*map(float, numbers), NAN])])).to_pylist()
    assert of_floats == [*map(str, numbers), None]


@given(st.lists(st.floats(-(2.0**52), 2.0**52), min_size=1))
def test_no_two_floats_are_one_text(numbers):
    text = as_text(pa.chunked_array([pa.array(numbers)])).to_pylist()
    assert [*map(float, text)] == numbers


def pandas_frame():
    """Rows as people make them: missing labels, which become NaN among floats; categories; some boxes; an index."""
    return pd.DataFrame(
        {
            "image_id": pd.Categorical(["a", "b", "c"]),
            "path": pd.array(["1", "2", "3"], dtype="string"),
            "label": [3.0, NAN, 0.5],
            "split": pd.Categorical(["train", None, "test"]),
            "role": [None, "query", NAN],
            **{name: [corner, NAN, corner] for name, corner in zip(manifest.BOX, (0, 0, 9.5, 9), strict=True)},
        },
        index=["x", "y", "z"],
    )


@pytest.mark.parametrize("nulls", [True, False], ids=["as null", "as NaN"])
def test_what_pandas_wrote(tmp_path, nulls):
    table = pa.Table.from_pandas(pandas_frame())
    if not nulls:  # other programs write NaN itself
        labels = pa.array([3.0, NAN, 0.5], from_pandas=False)
        boxes = {
            name: pa.array([corner, NAN, corner]) for name, corner in zip(manifest.BOX, (0, 0, 9.5, 9), strict=True)
        }
        for name, values in {"label": labels, **boxes}.items():
            table = table.set_column(table.column_names.index(name), name, values)
    pq.write_table(table, tmp_path / "m.parquet")
    rows = manifest.read(str(tmp_path / "m.parquet"))
    assert rows.image_ids.tolist() == ["a", "b", "c"]
    assert rows.labels.tolist() == ["3", None, "0.5"]
    assert rows.table["split"].to_pylist() == ["train", None, "test"]
    assert rows.table["role"].to_pylist() == [None, "query", None]
    assert rows.boxes == [(0, 0, 9.5, 9), None, (0, 0, 9.5, 9)]
    assert rows.table["__index_level_0__"].to_pylist() == ["x", "y", "z"]


def test_what_pandas_wrote_as_csv(tmp_path):
    pandas_frame().to_csv(tmp_path / "m.csv")
    rows = manifest.read(str(tmp_path / "m.csv"))
    assert rows.labels.tolist() == ["3.0", None, "0.5"]  # the text of a CSV file stays as it is
    assert rows.boxes == [(0, 0, 9.5, 9), None, (0, 0, 9.5, 9)]


def test_a_float_column_without_labels(shared):
    table = pq.read_table(shared("cases/nan-label.parquet"))
    rows = manifest.checked("m", table.append_column("image_id", table["path"]))
    assert set(rows.labels) == {None, *"012345"}


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_what_is_no_label(tmp_path, ending):
    labels = pa.array(["", " \t", None, "NA", "None", "nan", "null", " a"])
    table = pa.table({"image_id": [*"abcdefgh"], "path": [*"abcdefgh"], "label": labels})
    tables.write(str(tmp_path / f"m.{ending}"), table)
    rows = manifest.read(str(tmp_path / f"m.{ending}"))
    assert rows.labels.tolist() == [None, None, None, "NA", "None", "nan", "null", " a"]
