"""A random walk of 100 kills over all jobs that need no network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WALK = Path(__file__).with_name("walk.py")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_what_a_killed_job_leaves_is_whole_or_refused(capsys):
    kills, seed = 100, 2
    command = [sys.executable, WALK, "--kills", str(kills), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    with capsys.disabled():
        print(f"\n{done.stdout.strip()}")
    assert sum(found["deaths"].values()) == kills
    assert 0 < found["refused"] < kills
