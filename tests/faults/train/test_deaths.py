"""Losses that training survives or explains: a node that is gone for good, a loss that is not a number."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_job_with_step_ids_and_advice(train, out):
    job = train(out, "--learning-rate", "1e38", "--optimizer", "sgd")
    assert job.end() == (1, None)
    last = job.said().splitlines()[-1]
    assert re.search(r"failed: the loss is not a number at step \d of epoch 1; its 16 triplets are in '.*csv'", last)
    assert "lower --learning-rate, or try --precision float32, with another --out" in last
    with (out / "diverged.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16 and rows[0].keys() == {"anchor_id", "positive_id", "negative_id"}
    assert str(list(rows[0].values())) in last


@pytest.mark.slow
def test_photos_that_kill_or_are_broken_are_left_out_with_their_reasons(train, demo, out, tmp_path):
    shutil.copytree(demo, tmp_path / "photos", copy_function=shutil.copy2)
    manifest = tmp_path / "photos" / "manifest.csv"
    with manifest.open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    ids, (deadly, broken) = [rows[9]["image_id"], rows[30]["image_id"]], (rows[9]["path"], rows[30]["path"])
    with open(manifest.parent / deadly, "ab") as photo:
        photo.write(b"dies by SIGKILL")
    (manifest.parent / broken).write_bytes(b"<html>")
    job = train(out, "--manifest", manifest, "--epochs", "1", "--workers", "2")  # of which each meets one
    status, result = job.end()
    assert status == 0, job.said()
    assert result["unreadable"] == 2
    with (out / "unreadable.csv").open() as file:
        reasons = {row["image_id"]: row["reason"] for row in csv.DictReader(file)}
    assert list(reasons) == ids
    assert reasons[ids[0]] == "decoding killed the process (SIGKILL, 3 of 3 attempts)"
    assert "<html>" in reasons[ids[1]]
    said = job.said()
    assert "photos that could not be read: 2 (1 × decoding killed the process" in said
    assert f"they are left out; see {out}/unreadable.csv" in said and "out of memory" not in said
    assert "100 % of activations from the cache, 0 computed" in said


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_it_goes_on_when_told_again(train, assert_same, out, number):
    job = train(out, write_seconds=0.3)
    assert job.until(lambda: job.epochs() == [1]), job.said()
    assert job.kill("driver", number)
    assert job.end() == (130, None)
    assert job.said().splitlines()[-1] == "interrupted; run the same command again to resume"
    job = train(out)
    status, result = job.end()
    assert status == 0 and "resumed after epoch" in job.said()
    assert_same(result, out)


@pytest.fixture
def start_node():
    """Starts a node, the first as the head of a cluster on a port of its own; the address, and the node.

    Its GPU is no more than a number to Ray, so that each has room for one worker.
    """
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    paths = (Path(__file__).parents[1] / "hooks", Path(__file__).parents[3])
    environment |= {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    port = 20_000 + os.getpid() % 10_000
    started = []

    def start(write_seconds=0.0):
        environment["DIM_TEST_WRITE_SECONDS"] = str(write_seconds)  # for the workers on it
        place = (
            [f"--address=127.0.0.1:{port}"] if started else ["--head", f"--port={port}", "--include-dashboard=false"]
        )
        sizes = ["--num-cpus=1", "--num-gpus=1"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *sizes, *place]
        started.append(subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL))
        time.sleep(10)
        return f"127.0.0.1:{port}", started[-1]

    yield start
    for node in started:
        end(node)


def end(node):
    """Kills all processes of a node."""
    try:
        os.killpg(node.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    node.wait()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_lost_node_leaves_fewer_workers_and_the_same_batches(train, start_node, assert_same, out):
    address, _ = start_node()
    _, other = start_node()
    job = train(f"file://{out}", "--workers", "2", address=address)  # as what all nodes mount
    assert job.until(lambda: job.epochs() == [1]), job.said()
    end(other)
    status, result = job.end()
    assert status == 0, job.said()
    assert result["workers"] == 1
    assert "resumed after epoch" in job.said()
    assert "1 of 2 workers train, as many as there is room for" in job.said()
    assert_same(result, out)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_node_that_comes_is_used_from_the_last_checkpoint_on(train, start_node, assert_same, out):
    address, _ = start_node(write_seconds=8)
    job = train(f"file://{out}", "--workers", "2", address=address)
    assert job.until(lambda: job.epochs() == [1]), job.said()
    assert "from epoch 1 on, 1 of 2 workers train, as many as there is room for" in job.said()
    start_node()  # Ray Train looks for nodes once a minute
    status, result = job.end()
    assert status == 0, job.said()
    assert result["workers"] == 2, job.said()
    assert "resumed after epoch" in job.said() and "2 of 2 workers train" in job.said()
    assert_same(result, out)
