"""One of two workers is killed, stops answering, or meets what only it can see: the other never waits for ever."""

import json
import shutil
import signal

import pytest

from dim.io import tables
from dim.train.job import DEMO

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

TWO = ("--workers", "2")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_is_said_and_made_good(train, assert_same, out, number, monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "20")  # of 600
    job = train(out, *TWO, write_seconds=0.3)
    assert job.until(lambda: job.epochs() == [1]), job.said()
    assert job.kill("worker", number)
    status, result = job.end()
    assert status == 0, job.said()
    assert "the workers start again from the last checkpoint" in job.said()
    assert "resumed after epoch" in job.said()
    assert_same(result, out)


@pytest.mark.parametrize("disk", [512 * 2**20], indirect=True)  # weights and checkpoints take about 150 MB
def test_a_full_disk_ends_both_workers_and_the_run_goes_on_once_there_is_room(disk, fill, train):
    filler = fill(disk, 300_000)
    job = train(disk / "run", *TWO)
    assert job.end() == (1, None)
    assert "No space left on device" in job.said().splitlines()[-1]
    filler.unlink()
    job = train(disk / "run", *TWO)
    status, result = job.end()
    assert status == 0, job.said()
    assert result.items() >= json.loads((disk / "run" / "result.json").read_text()).items()


def test_a_photo_that_becomes_unreadable_is_named(train, out, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(DEMO.parent, photos)
    # Random variants are made from the photos again in each step.
    job = train(out, *TWO, "--manifest", photos / DEMO.name, "--crop", "0.2", decode_seconds=0.05)
    assert job.until(lambda: list(out.glob("hardest/*"))), job.said()
    for path in tables.read(str(photos / DEMO.name)).column("path").to_pylist():
        (photos / path).write_bytes(b"no photo")
    status, _ = job.end()
    assert status == 1 and "was readable when it was mined" in job.said().splitlines()[-1]
    assert "start again" not in job.said()  # another try would meet the same
