"""Files on any storage: names, complete writes, JSON and tables."""

import json
import math
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from dim.errors import JobFailed, UserError
from dim.io import files, local_copies, storage, tables


def test_names():
    assert files.join("a/b", "c") == files.join("a/b/", "c") == "a/b/c"
    assert files.join("a", "/c") == "/c" and files.join("a", "s3://b/c") == "s3://b/c" and files.join("", "c") == "c"
    assert files.parent("a/b") == "a" and files.parent("b") == "." and files.parent("s3://b/c") == "s3://b"
    assert files.absolute("a") == f"{Path.cwd()}/a" and files.absolute("gs://b/a") == "gs://b/a"
    assert files.locate("~/a")[1] == os.path.expanduser("~/a")
    assert files.is_local("a") and files.is_local("file:///a")


def test_names_in_a_bucket_are_taken_as_they_are(monkeypatch):
    asked = []
    monkeypatch.setattr(storage, "_opened", lambda uri: asked.append(uri) or (pafs.LocalFileSystem(), "bucket"))
    assert files.locate("s3://bucket/50 % off/a.jpg")[1] == "bucket/50 % off/a.jpg"
    assert files.locate("s3://bucket")[1] == "bucket"
    assert asked == ["s3://bucket", "s3://bucket"]


@pytest.mark.parametrize("uri", ["nowhere://a/b", "://a"])
def test_a_storage_that_is_unknown(uri):
    with pytest.raises(UserError, match="cannot open"):
        files.locate(uri)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_what_is_written_is_read(tmp_path, scheme):
    folder = f"{scheme}{tmp_path}/new/folder"
    assert not files.exists(folder) and files.names(folder) == []
    files.make_folder(folder)
    assert files.exists(folder) and files.is_folder(folder)
    files.write_bytes(files.join(folder, "b"), b"\0\1")
    files.write_json(files.join(folder, "a.json"), {"é": [1, None]})
    assert files.names(folder) == ["a.json", "b"]
    assert files.read_bytes(files.join(folder, "b")) == b"\0\1"
    assert files.read_json(files.join(folder, "a.json")) == {"é": [1, None]}
    files.delete(files.join(folder, "b"))
    files.delete(files.join(folder, "b"))
    assert files.names(folder) == ["a.json"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    target = str(tmp_path / "a")
    files.write_bytes(target, b"before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JobFailed, match=r"cannot write '.*a' \(.*No space left on device\); make room and run"):
        files.write_bytes(target, b"after")
    assert files.read_bytes(target) == b"before" and files.names(str(tmp_path)) == ["a"]


def test_json_has_no_word_for_what_is_no_number(tmp_path):
    files.write_json(str(tmp_path / "a.json"), {"map": math.nan, "all": [math.inf, -math.inf, 0.5, "NaN", None]})
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert read == {"map": None, "all": [None, None, 0.5, "NaN", None]}


def test_json_that_is_missing_or_none(tmp_path):
    with pytest.raises(UserError, match="no file"):
        files.read_json(str(tmp_path / "none.json"))
    (tmp_path / "a.json").write_bytes(b'{"a": \xff}')
    with pytest.raises(UserError, match=r"a\.json' is not JSON") as error:
        files.read_json(str(tmp_path / "a.json"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_tables(tmp_path, ending):
    uri = str(tmp_path / f"t{ending}")
    table = pa.table({"id": ["007", "a,b", 'say "hi"\nthere'], "label": [None, "", "NA"], "x": [1.5, None, 2.0]})
    tables.write(uri, table)
    found = tables.read(uri)
    assert found["id"].to_pylist() == table["id"].to_pylist()
    if ending == ".parquet":
        assert found.equals(table)
    else:  # a CSV is text; an empty cell is null, "NA" is not
        assert found["label"].to_pylist() == [None, None, "NA"]
        assert found["x"].cast(pa.float64()).to_pylist() == [1.5, None, 2.0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b"a\n1\n", "is neither .parquet nor .csv"),
        ("t.parquet", b"a,b\n1,2\n", "cannot read the table"),
        ("t.parquet", b"", "cannot read the table"),
        ("t.csv", b"", "cannot read the table"),
        ("t.csv", b"a,b\n1\n", "cannot read the table"),
        ("t.csv", b"a,b\n\xff,2\n", "cannot read the table"),
        ("t.csv", None, "no file"),
    ],
)
def test_a_table_that_cannot_be_read_is_named_in_one_line(tmp_path, name, content, message):
    uri = str(tmp_path / name)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        tables.read(uri)
    assert repr(uri) in str(error.value) and "\n" not in str(error.value)


def test_large_files_go_through_this_machines_disk(tmp_path):
    uri = str(tmp_path / "a")
    with local_copies.path_to_write(uri) as path, open(path, "w") as file:
        file.write("whole")
    with local_copies.path_to_read(uri) as path, open(path) as file:
        assert file.read() == "whole"
    with pytest.raises(ZeroDivisionError), local_copies.path_to_write(uri) as path:
        open(path, "w").close()
        raise ZeroDivisionError
    assert files.read_bytes(uri) == b"whole" and files.names(str(tmp_path)) == ["a"]


def test_a_link_beside_is_not_written_through(tmp_path):
    target, uri = tmp_path / "precious", str(tmp_path / "out.json")
    target.write_text("mine")
    beside = tmp_path / f"out.json.{os.getpid()}.tmp"
    beside.symlink_to(target)
    files.write_json(uri, {})
    beside.symlink_to(target)
    with local_copies.path_to_write(uri) as path:
        Path(path).write_text("large")
    assert (target.read_text(), (tmp_path / "out.json").read_text()) == ("mine", "large")
