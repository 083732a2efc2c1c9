"""Deaths that an extraction survives by itself: photos that kill, a network that dies; and how it ends when told to."""

import shutil
import signal
import time

import pyarrow.parquet as pq
import pytest

DEADLY = {9: b"SIGSEGV", 30: b"SIGKILL"}  # a crash, and how the kernel ends what takes too much memory


@pytest.fixture(scope="module")
def poisoned(photos, tmp_path_factory):
    """The photos, two of which kill the process that decodes them; and the ids of these."""
    folder = tmp_path_factory.mktemp("poisoned") / "photos"
    shutil.copytree(photos.parent, folder, copy_function=shutil.copy2)
    rows = (folder / "photos.csv").read_text().splitlines()[1:]
    for row, signal_name in DEADLY.items():
        with open(folder / rows[row].split(",")[1], "ab") as photo:
            photo.write(b"dies by " + signal_name)
    return folder / "photos.csv", [rows[row].split(",")[0] for row in DEADLY]


@pytest.mark.slow
def test_photos_that_kill_become_errors_and_a_killed_network_nothing(extract, poisoned, assert_whole, tmp_path):
    manifest, deadly = poisoned
    job = extract(manifest, tmp_path / "out")
    assert job.until(lambda: job.shards() and job.kill("network")), job.said()
    status, result = job.end()
    assert status == 0, job.said()
    assert result.items() >= {"images": 48, "ok": 46, "errors": 2, "computed": 48}.items()
    assert_whole(tmp_path / "out", deadly)
    rows = [row for path in (tmp_path / "out").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    reasons = {row["error"] for row in rows if row["image_id"] in deadly}
    assert reasons == {f"decoding killed the process ({name.decode()}, 3 of 3 attempts)" for name in DEADLY.values()}


@pytest.mark.slow
def test_a_photo_that_hangs_becomes_an_error(extract, photos, assert_whole, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos.parent, folder, copy_function=shutil.copy2)
    image_id, path = (folder / "photos.csv").read_text().splitlines()[1:][20].split(",")[:2]
    with open(folder / path, "ab") as photo:
        photo.write(b"hangs for ever")
    status, result = extract(folder / "photos.csv", tmp_path / "out").end()
    assert status == 0 and (result["ok"], result["errors"]) == (47, 1)
    assert_whole(tmp_path / "out", [image_id])
    rows = [row for path in (tmp_path / "out").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert [row["error"] for row in rows if row["status"] == "error"] == ["decoding took longer than 60 s"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end(extract, photos, tmp_path, number):
    job = extract(photos, tmp_path / "out", decode_seconds=0.4)
    assert job.until(lambda: job.pids("network")), job.said()
    assert job.kill("driver", number)
    assert job.end() == (130, None)
    assert job.said().splitlines()[-1] == "interrupted; run the same command again to resume"


@pytest.mark.slow
def test_a_network_that_always_dies_ends_the_job_in_one_line(extract, photos, tmp_path):
    job = extract(photos, tmp_path / "out", "--batch-size", "48")
    while job.process.poll() is None:
        before = job.pids("network at work")
        time.sleep(2)  # so that it is at the photos, and not at what comes before them in a new process
        if before and before == job.pids("network at work"):
            job.kill("network at work")
    status, _ = job.end()
    assert status == 1
    assert "failed: the network's process died 5 times over the same photos" in job.said().splitlines()[-1]
