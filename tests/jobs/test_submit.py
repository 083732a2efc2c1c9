"""Jobs through Ray's job API as users write them, on a head whose first `python` is not the one that Ray runs in."""

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ports import free_ports

REPOSITORY = Path(__file__).resolve().parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
SECONDS = 120


class Head:
    """A Ray of its own, to which jobs are submitted from `work`."""

    def __init__(self, folder):
        self.work = folder / "work"
        for name in ("jobs", "dim"):
            ignored = shutil.ignore_patterns("__pycache__", "assets")
            shutil.copytree(REPOSITORY / name, self.work / name, ignore=ignored)
        venv.create(folder / "other", with_pip=False)
        port, dashboard, agent = free_ports(3)
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            "PATH": f"{folder / 'other' / 'bin'}:/usr/bin:/bin",
            "PYTHONPATH": "",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
            "RAY_AUTH_MODE": "disabled",
        }
        flags = ["--num-cpus=1", f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}/ray"]
        flags += [f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
        self._process = subprocess.Popen(
            [*RAY, "start", "--head", "--block", *flags],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self):
        """Waits until jobs are taken."""
        end = time.monotonic() + SECONDS
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < end, "Ray did not start"
            time.sleep(0.5)

    def _answers(self):
        try:
            with urllib.request.urlopen(f"{self.environment['RAY_API_SERVER_ADDRESS']}/api/version", timeout=10):
                return True
        except OSError:
            return False

    def submit(self, *words):
        """The exit status of the submission, and all that it and the job said."""
        done = subprocess.run(
            [*RAY, "job", "submit", "--working-dir", ".", *map(str, words)],
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        return done.returncode, done.stdout + done.stderr

    def end(self):
        self._process.terminate()  # which ends all that it started, too
        self._process.wait(timeout=60)


@pytest.fixture(scope="module")
def head():
    folder = Path(f"/tmp/dim-submit-{os.getpid()}")  # the paths of sockets must be short
    folder.mkdir()
    try:
        started = Head(folder)
        try:
            started.wait()
            yield started
        finally:
            started.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def photos(tmp_path):
    for label in "abcd":
        for number in range(3):
            path = tmp_path / "photos" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((32, 32, 3), 40 * number, np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.mark.slow
def test_a_job_submitted_as_a_file_finds_the_python_of_the_cluster(head, photos, tmp_path):
    status, said = head.submit("--", "jobs/split.py", photos, "--out", tmp_path / "photos.csv")
    assert status == 0, said
    assert len((tmp_path / "photos.csv").read_text().splitlines()) == 13


@pytest.mark.slow
def test_the_literal_command_reaches_the_job(head):
    # A flag would be taken for one of `ray job submit`'s: so only that the job runs, and misses what it needs.
    status, said = head.submit("jobs/split.py")
    assert status != 0
    assert "the following arguments are required: IMAGES" in said
    assert "exit code 2" in said


@pytest.mark.slow
def test_another_python_is_named(head, photos, tmp_path):
    status, said = head.submit("--", "python", "jobs/split.py", photos, "--out", tmp_path / "photos.csv")
    assert status != 0
    assert re.search(r"other/bin/python\S* has no Ray", said)
    assert "exit code 2" in said
    assert not (tmp_path / "photos.csv").exists()


@pytest.mark.slow
def test_an_output_that_would_be_lost_is_refused(head, photos):
    status, said = head.submit("--", "jobs/split.py", photos, "--out", "photos.csv")
    assert status != 0
    assert "--out 'photos.csv' is relative" in said
    assert "exit code 2" in said
