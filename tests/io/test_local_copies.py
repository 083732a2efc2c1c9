"""Half-written files of killed writers are deleted; files of living writers and of others are not."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from dim.app import output_folder
from dim.io import local_copies


@dataclass(frozen=True)
class Config:
    pass


@pytest.fixture
def dead():
    """The id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.fixture
def alive():
    """The id of another process, which runs."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.stdin.close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_only_what_dead_writers_began_goes(tmp_path, dead, alive):
    for name in (
        f"a.csv.{dead}.tmp",
        f"b.{alive}.tmp",
        f"c.{alive}.tmp",
        "notes.tmp",
        "x.y.tmp",
        f"{dead}.tmp",
        "whole",
    ):
        (tmp_path / name).write_text("half")
    hours_ago = time.time() - 2 * 3600
    os.utime(tmp_path / f"c.{alive}.tmp", (hours_ago, hours_ago))  # so old that another process may have the id now
    (tmp_path / f"linked.{dead}.tmp").symlink_to(tmp_path / "whole")
    (tmp_path / f"folder.{dead}.tmp").mkdir()
    kept = [
        f"b.{alive}.tmp",
        "notes.tmp",
        "x.y.tmp",
        f"{dead}.tmp",
        "whole",
        f"linked.{dead}.tmp",
        f"folder.{dead}.tmp",
    ]
    local_copies.sweep(str(tmp_path))
    assert names(tmp_path) == sorted(kept)
    local_copies.sweep(str(tmp_path / "none"))


def test_beside_a_single_file_only_its_own_goes(tmp_path, dead):
    for name in (f"m.csv.{dead}.tmp", f"m.csv.{dead}.{dead}.tmp", f"other.csv.{dead}.tmp"):
        (tmp_path / name).write_text("half")
    local_copies.sweep(str(tmp_path), "m.csv")
    assert names(tmp_path) == sorted([f"m.csv.{dead}.{dead}.tmp", f"other.csv.{dead}.tmp"])


@pytest.mark.parametrize("job", ["extract", "index", "evaluate", "import", "nightly", "export"])
def test_each_job_sweeps_its_folder(tmp_path, dead, job):
    (tmp_path / f"knn.index.{dead}.tmp").write_text("half")
    with output_folder.opened(str(tmp_path), job, Config(), {}) as out:
        assert not (tmp_path / f"knn.index.{dead}.tmp").exists()
        out.finish({})
