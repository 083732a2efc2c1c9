"""Output folders: run.json and result.json, one writer, one job, and no trace of a user's mistake."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from dim.app import output_folder
from dim.errors import JobFailed, UserError
from dim.io import seal, tables


@dataclass(frozen=True)
class Config:
    size: int = 3


def open_as(job, folder, **extra):
    return output_folder.opened(str(folder), job, Config(), {"manifest": "m.csv"}, **extra)


def read(path):
    return json.loads(path.read_text())


def test_the_life_of_a_folder(tmp_path):
    folder = tmp_path / "new" / "out"
    with open_as("extract", folder, embedding={"id": "x"}) as out:
        record = read(folder / "run.json")
        assert record["status"] == "running" and record["started"]
        assert record.items() >= {"job": "extract", "format_version": 1, "embedding": {"id": "x"}}.items()
        assert record["inputs"] == {"manifest": "m.csv"} and record["configuration"] == {"size": 3}
        assert {"dim", "python", "ray", "tensorflow", "numpy"} <= record["versions"].keys()
        assert record["environment"].keys() == {"KERAS_BACKEND", "TF_ENABLE_ONEDNN_OPTS"}
        assert out.path("a") == f"{folder}/a"
        assert not (folder / "result.json").exists()
        assert out.finish({"images": 7}) == {"images": 7}
    record = output_folder.record_of(str(folder))
    assert record is not None and record["status"] == "done" and record["finished"]
    assert record["counts"] == read(folder / "result.json") == {"images": 7}


def test_a_result_is_not_left_from_the_run_before(tmp_path):
    with open_as("extract", tmp_path / "out") as out:
        out.finish({})
    with pytest.raises(ZeroDivisionError), open_as("extract", tmp_path / "out"):
        raise ZeroDivisionError
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "run.json"]


def test_one_folder_one_job(tmp_path):
    with open_as("extract", tmp_path / "out"):
        pass
    with pytest.raises(UserError, match=r"holds the output of extract\.py; choose another --out for mine\.py"):
        open_as("mine", tmp_path / "out").__enter__()


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path):
    first = open_as("extract", tmp_path / "out")
    with first, pytest.raises(UserError, match=rf"is being written by .+@\S+, process {os.getpid()}, since 2") as error:
        open_as("extract", tmp_path / "out").__enter__()
    assert "\n" not in str(error.value)
    with open_as("extract", tmp_path / "out"):
        pass


def test_a_dead_writers_lock_is_taken_over(tmp_path):
    program = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_output_folder
with test_output_folder.open_as("extract", {str(tmp_path / "out")!r}):
    print("writing", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == "writing\n"
        with pytest.raises(UserError, match=f"process {writer.pid}"):
            open_as("extract", tmp_path / "out").__enter__()
        writer.kill()
    with open_as("extract", tmp_path / "out"):
        pass


def test_a_mistake_that_shows_late_leaves_no_trace(tmp_path):
    with pytest.raises(UserError), open_as("extract", tmp_path / "out"):
        raise UserError("the weights are of another network")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (KeyboardInterrupt(), "stopped", "interrupted"),
        (SystemExit(0), "stopped", "interrupted"),
        (JobFailed("it diverged"), "failed", "it diverged"),
        (OSError("the disk\nis full"), "failed", r"OSError: the disk\nis full"),
        (ZeroDivisionError("see s3://key:secret@bucket/a"), "failed", "ZeroDivisionError: see s3://…@bucket/a"),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_how_a_job_ended_stands_in_the_folder(tmp_path, error, status, reason, again):
    out = tmp_path / "out"
    if again:
        sealed(out, a_csv="1")
    with pytest.raises(type(error)), open_as("audit", out):
        raise error
    record = read(out / "run.json")
    assert (record["status"], record["reason"]) == (status, reason)
    assert record["finished"] >= record["started"]
    with pytest.raises(UserError, match=r"was never finished; run audit\.py again"):
        output_folder.verified_seal(str(out))
    sealed(out, a_csv="1")
    assert "reason" not in read(out / "run.json") and output_folder.verified_seal(str(out))


def test_a_job_whose_result_cannot_be_written_has_failed(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(JobFailed), open_as("audit", out) as made:
        (out / "result.json").mkdir()
        made.finish({})
    assert read(out / "run.json")["status"] == "failed"


def test_what_ended_the_job_is_told_although_it_cannot_be_recorded(tmp_path):
    with pytest.raises(OSError, match="full"), open_as("audit", tmp_path / "out"):
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "out").touch()
        raise OSError("the disk is full")


def test_a_job_that_was_killed_leaves_its_record_and_no_lock(tmp_path):
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_output_folder
with test_output_folder.open_as("audit", {str(tmp_path / "out")!r}):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    assert read(tmp_path / "out" / "run.json")["status"] == "running"
    assert not locked(tmp_path / "out" / ".lock")
    with open_as("audit", tmp_path / "out"):
        assert locked(tmp_path / "out" / ".lock")


def locked(path):
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_mistake_that_shows_late_leaves_an_output_as_it_was(tmp_path):
    out = tmp_path / "out"
    sealed(out, a_csv="1", b_csv="22")
    before = {path: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}
    with pytest.raises(UserError), open_as("audit", out) as again:
        again.path("a.csv")
        raise UserError("it takes no rows")
    assert {path: path.read_bytes() for path in out.iterdir() if path.name != ".lock"} == before
    assert output_folder.verified_seal(str(out))


def test_a_mistake_over_what_is_not_sealed_leaves_it_as_it_was(tmp_path):
    out = tmp_path / "out"
    with open_as("nightly", out) as first:
        first.finish({"map": 0.5})
    before = read(out / "run.json")
    with pytest.raises(UserError), open_as("nightly", out):
        raise UserError("the date is before the last night")
    assert read(out / "run.json") == before and read(out / "result.json") == {"map": 0.5}


@pytest.mark.parametrize("change", ["3", None])
def test_a_mistake_that_shows_once_something_was_written_is_recorded(tmp_path, change):
    out = tmp_path / "out"
    sealed(out, a_csv="1", b_csv="22")
    with pytest.raises(UserError), open_as("audit", out) as again:
        if change is None:
            (out / "b.csv").unlink()
        else:
            Path(again.path("a.csv")).write_text(change)
        raise UserError("late")
    assert read(out / "run.json").items() >= {"status": "failed", "reason": "late"}.items()
    with pytest.raises(UserError, match="was never finished"):
        output_folder.verified_seal(str(out))


def test_a_mistake_deletes_nothing_but_its_own(tmp_path):
    with pytest.raises(UserError), open_as("extract", tmp_path / "out") as out:
        (tmp_path / "out" / "part").write_text("computed")
        raise UserError("late")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["part"]
    with open_as("extract", tmp_path / "out") as out:
        out.finish({})
    with pytest.raises(UserError), open_as("extract", tmp_path / "out"):
        raise UserError("late")
    assert (tmp_path / "out" / "run.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not the record of a dim job"),
        ("{}", "is not the record of a dim job"),
        ('{"job": "extract", "format_version": 9}', "has format version 9, this dim reads 1"),
    ],
)
def test_a_record_that_is_none(tmp_path, content, message):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=message):
        output_folder.record_of(str(tmp_path))
    with pytest.raises(UserError, match=message):
        open_as("extract", tmp_path).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for out in ("file", "file/out"):
        with pytest.raises(UserError, match=f"cannot make the folder '.*{out}'"):
            open_as("extract", tmp_path / out).__enter__()
    assert output_folder.record_of(str(tmp_path / "none")) is None


def test_a_lock_that_is_a_link_or_no_file(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / ".lock").symlink_to(tmp_path / "precious")
    (tmp_path / "folder" / ".lock").mkdir(parents=True)
    for out in ("linked", "folder"):
        with pytest.raises(UserError, match=rf"cannot write '.*{out}/\.lock' .*choose another folder"):
            open_as("extract", tmp_path / out).__enter__()
    assert (tmp_path / "precious").read_text() == "mine"


def sealed(folder, **contents):
    """Runs a job in `folder` that writes files with these `contents`."""
    with open_as("audit", folder) as out:
        for name, content in contents.items():
            Path(out.path(name.replace("_", "."))).write_text(content)
        return out.finish({})


def test_what_a_job_wrote_is_sealed(tmp_path):
    out = tmp_path / "out"
    sealed(out, a_csv="1", b_csv="22")
    tables.write(str(out / "c.parquet"), pa.table({"x": [1, 2, 3]}))
    (out / "notes").write_text("a person's")
    found = output_folder.verified_seal(str(out))
    assert found == read(out / "run.json")["files"] and found is not None
    assert {name: facts["bytes"] for name, facts in found.items()} == {"a.csv": 1, "b.csv": 2}
    assert found["a.csv"]["sha256"] == hashlib.sha256(b"1").hexdigest()
    with open_as("audit", out) as again:
        again.path("c.parquet")
        again.path("never written")
        again.finish({})
    assert output_folder.verified_seal(str(out)) == {"c.parquet": seal.create(str(out), ["c.parquet"], {})["c.parquet"]}
    assert read(out / "run.json")["files"]["c.parquet"]["rows"] == 3


def test_a_folder_that_was_copied_is_whole(tmp_path):
    sealed(tmp_path / "out", a_csv="1", b_csv="22")
    shutil.copytree(tmp_path / "out", tmp_path / "copy", copy_function=shutil.copyfile)
    assert (
        output_folder.verified_seal(str(tmp_path / "copy"))
        == output_folder.verified_seal(str(tmp_path / "out"))
        is not None
    )


def test_a_folder_that_lost_a_file_or_has_another_is_not_whole(tmp_path):
    out = tmp_path / "out"
    sealed(out, a_csv="1", b_csv="22")
    (out / "b.csv").write_text("333")
    with pytest.raises(
        UserError, match=r"b\.csv' is not the file that its run\.json describes; make it again with audit"
    ):
        output_folder.verified_seal(str(out))
    (out / "b.csv").unlink()
    with pytest.raises(
        UserError, match=r"no file '.*b\.csv'; make it again with audit\.py, or copy the folder as a whole"
    ):
        output_folder.verified_seal(str(out))
    with open_as("audit", out), pytest.raises(UserError, match=r"was never finished; run audit\.py again"):
        output_folder.verified_seal(str(out))


def test_a_file_of_the_run_before_goes_once_the_next_is_whole(tmp_path):
    out = tmp_path / "out"
    sealed(out, a_csv="1", b_csv="22")
    (out / "notes").write_text("a person's")
    for _ in range(2):  # one that is killed, and the next
        with pytest.raises(ZeroDivisionError), open_as("audit", out):
            raise ZeroDivisionError
    assert (out / "b.csv").exists()
    sealed(out, a_csv="1")
    assert sorted(path.name for path in out.iterdir()) == [".lock", "a.csv", "notes", "result.json", "run.json"]
    assert "replaces" not in read(out / "run.json")


@pytest.mark.parametrize("name", ["../precious", "/precious", "a/../../precious", "s3://bucket/precious", "", 5])
@pytest.mark.parametrize("key", ["files", "replaces"])
def test_a_strangers_seal_names_nothing_outside_of_its_folder(tmp_path, key, name):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "precious").write_text("mine")
    listed = {name: {}} if key == "files" and name != 5 else [name]
    (out / "run.json").write_text(json.dumps({"job": "audit", "status": "done", key: listed}))
    with pytest.raises(UserError, match="not what dim writes; make this folder again"), open_as("audit", out) as again:
        again.finish({})
    assert (tmp_path / "precious").read_text() == "mine"
