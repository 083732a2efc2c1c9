"""Losses that training survives or explains: a node that is gone for good, a loss that is not a number."""

import csv
import os
import re
import signal
import subprocess
import sys
import time

import pytest


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


@pytest.mark.all_kills
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
def nodes():
    """Two nodes, the head and another, on a port of their own. Their GPU is no more than a number to Ray, so that
    each has room for one worker.
    """
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["RAY_AUTH_MODE"] = "disabled"
    port = 20_000 + os.getpid() % 10_000
    places = (["--head", f"--port={port}", "--include-dashboard=false"], [f"--address=127.0.0.1:{port}"])
    started = []
    for place in places:
        sizes = ["--num-cpus=1", "--num-gpus=1"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *sizes, *place]
        started.append(subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL))
        time.sleep(10)
    yield f"127.0.0.1:{port}", *started
    for node in started:
        end(node)


def end(node):
    """Kills all processes of a node."""
    try:
        os.killpg(node.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    node.wait()


@pytest.mark.all_kills
@pytest.mark.timeout(3000)
def test_a_lost_node_leaves_fewer_workers_and_the_same_batches(train, nodes, assert_same, out):
    address, _, other = nodes
    job = train(f"file://{out}", "--workers", "2", address=address)  # as what all nodes mount
    assert job.until(lambda: job.epochs() == [1]), job.said()
    end(other)
    status, result = job.end()
    assert status == 0, job.said()
    assert result["workers"] == 1
    assert "resumed after epoch" in job.said()
    assert_same(result, out)
