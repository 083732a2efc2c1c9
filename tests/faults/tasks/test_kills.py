"""Jobs that work in Ray tasks, one of which dies by `kill -9`: Ray repeats it, and the result is the undisturbed one.

`pytest tests/faults -m slow` kills a task of each job, and the jobs themselves, whose command then runs again.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
SECONDS = 1.5  # that each task sleeps
MANIFEST, DESCRIPTORS = ("--manifest", "{manifest}"), ("--descriptors", "{descriptors}")
JOBS = {
    "audit": (*MANIFEST, *DESCRIPTORS),
    "evaluate": (*MANIFEST, *DESCRIPTORS, "--no-report"),
    "index": DESCRIPTORS,
    "mine": (*MANIFEST, *DESCRIPTORS, "--margin", "4"),
    "search": ("--index", "{descriptors}", "--queries", "{descriptors}", "--no-report"),
    "whiten": (*MANIFEST, *DESCRIPTORS, "--dimension", "4"),
}
VICTIMS = ("task", "driver")
KILLS = [pytest.param(*kill, id="-".join(kill)) for kill in itertools.product(JOBS, VICTIMS)]


@pytest.fixture
def flags(write_manifest, write_descriptors):
    """The flags of a job, on descriptors of 48 photos of 8 labels, a few of them wrong."""
    generator = np.random.default_rng(0)
    codes = np.arange(48) % 8
    vectors = generator.standard_normal((8, 16))[codes] + 0.5 * generator.standard_normal((48, 16))
    codes[:4] = 7
    ids = [f"{row:02d}" for row in range(48)]
    manifest = write_manifest(image_id=ids, label=[f"{code}" for code in codes], split=["train"] * 48)
    places = {"manifest": manifest, "descriptors": write_descriptors(ids, vectors, sealed=True)}
    return lambda job: [flag.format(**places) for flag in JOBS[job]]


def left(out):
    """The content of what a job has written, without what names times and places."""
    if out.is_file():
        return {name: array.tobytes() for name, array in np.load(out).items() if array.dtype.kind == "f"}
    names = [path.name for path in out.iterdir() if path.suffix in (".csv", ".index", ".parquet")]
    return {name: (out / name).read_bytes() for name in sorted(names)}


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("name", "victim"), KILLS)
def test_killed(start, flags, tmp_path, name, victim):
    out, again = (tmp_path / f"{place}{'.npz' if name == 'whiten' else ''}" for place in ("out", "undisturbed"))
    job = start(name, out, *flags(name), task_seconds=SECONDS)
    assert job.until(lambda: job.pids("task")), job.said()
    assert job.kill(victim)
    status, result = job.end()
    if victim == "driver":
        assert status != 0
        status, result = start(name, out, *flags(name), task_seconds=0).end()
    assert status == 0, job.said()
    command = [sys.executable, f"jobs/{name}.py", *flags(name), "--out", again]
    undisturbed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for found in (result, expected := json.loads(undisturbed.splitlines()[-1])):
        for figure in ("seconds", "whitening"):
            found.pop(figure, None)
    assert result == expected
    assert left(out) == left(again) != {}
    assert not list(tmp_path.rglob("*.tmp"))
