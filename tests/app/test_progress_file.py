"""progress.json: what another terminal reads of a running job, of a killed one, and of one whose lease is lost."""

import datetime
import json
import logging
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from dim.app import output_folder, progress_file
from dim.app.progress import Progress
from dim.errors import JobFailed, UserError
from dim.io import storage


@dataclass(frozen=True)
class Config:
    size: int = 3


@pytest.fixture(autouse=True)
def often(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "dim")
    monkeypatch.setattr(progress_file, "SECONDS", 0.02)


def opened(out, job="extract"):
    return output_folder.opened(str(out), job, Config(), {})


def until(path, condition):
    """The content of the file once the condition holds for it."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if path.exists() and condition(found := json.loads(path.read_text())):  # never half a file
            return found
        time.sleep(0.01)
    raise TimeoutError(path)


def test_a_running_job_can_be_asked(tmp_path):
    file = tmp_path / "out" / "progress.json"
    with opened(tmp_path / "out") as out:
        first = until(file, bool)
        assert (first.keys(), first["job"]) == ({"job", "status", "started", "updated"}, "extract")
        stage = Progress("extracting", 100, errors=True)
        stage.add(10)
        time.sleep(0.3)  # a record is made five times a second at most
        stage.add(30, errors=2)
        found = until(file, lambda found: found.get("done") == 40)
        assert found["status"] == output_folder.RUNNING
        assert (found["stage"], found["total"], found["unit"], found["errors"]) == ("extracting", 100, "images", 2)
        assert found["seconds_left"] == pytest.approx(60 / found["rate"], rel=0.1)
        assert not (tmp_path / "out" / "result.json").exists()
        out.finish({"images": 100})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "result.json", "run.json"]


def test_a_stage_that_begins_replaces_the_one_before(tmp_path):
    file = tmp_path / "out" / "progress.json"
    with opened(tmp_path / "out"):
        Progress("embedding", 5, epoch=2).add(5)
        assert until(file, lambda found: found.get("stage") == "embedding")["epoch"] == 2
        Progress("mining", 7, "parts").add(1)
        assert "epoch" not in until(file, lambda found: found.get("stage") == "mining")


@pytest.mark.parametrize("error", [UserError("no"), JobFailed("no"), KeyboardInterrupt()])
def test_nothing_is_left_however_a_job_ends(tmp_path, error):
    with pytest.raises(type(error)), opened(tmp_path / "out"):
        until(tmp_path / "out" / "progress.json", bool)
        raise error
    assert not (tmp_path / "out" / "progress.json").exists()
    assert (tmp_path / "out").exists() != isinstance(error, UserError)  # whose new folder is removed


def test_a_killed_job_leaves_a_file_that_grows_old_and_the_next_run_replaces_it(tmp_path):
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_progress_file import opened, progress_file
progress_file.SECONDS = 0.02
with opened({str(tmp_path / "out")!r}):
    sys.stdin.read()
"""
    file = tmp_path / "out" / "progress.json"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as job:
        until(file, bool)
        job.send_signal(signal.SIGKILL)
        job.wait()
    left = json.loads(file.read_text())
    time.sleep(0.2)
    assert json.loads(file.read_text()) == left
    assert datetime.datetime.fromisoformat(left["updated"]) <= datetime.datetime.now(datetime.UTC)
    with opened(tmp_path / "out") as out:
        assert not file.exists() or json.loads(file.read_text())["started"] >= left["started"]
        out.finish({})
    assert not file.exists()


def test_a_file_that_cannot_be_written_does_not_end_the_job(tmp_path, monkeypatch):
    def lost():
        raise JobFailed("this job could not renew its lease in time")

    monkeypatch.setattr(progress_file, "SECONDS", 0.3)
    with opened(tmp_path / "out") as out:
        with storage.guard_writes(str(tmp_path / "out"), lost):
            time.sleep(1)
            assert not (tmp_path / "out" / "progress.json").exists()
        until(tmp_path / "out" / "progress.json", bool)  # once writes are possible again
        out.finish({})
    assert (tmp_path / "out" / "result.json").exists()
