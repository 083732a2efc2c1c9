"""Placement on real raylets: a head that does no work, and nodes of different size that join it (tests/raylets.py)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the jobs took as the cluster grew."""
    command = [sys.executable, Path(__file__).with_name("raylets.py"), tmp_path_factory.mktemp("raylets")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_what_may_come_is_taken_as_if_it_were_there(found):
    # Two nodes of 4 CPUs and a GPU, and one of 6 CPUs. Beside a GPU one CPU feeds it, and the others decode.
    trainers = {"1 × 1": 1, "2 × 1": 1, "2 × 0.5": 1, "1 × 0": 5, "2 × 0": 3}
    actors = {"1": 1, "1000000": 2}
    without = {"1": 1, "1000000": 3}
    taken = {"trainers": trainers, "actors": actors, "actors_without_gpus": without, "precision": "bfloat16"}
    assert found["before"] == found["after"] == taken


def test_a_job_waits_for_a_node_and_says_so(found):
    ok, (gpu,) = found["waited"]
    assert (ok, gpu) == (24, "0")
    assert found["said"] == [
        "waiting for 1 of 1 network actors of 1 GPU and 1 CPU: the cluster has no node with CPUs, and may grow to "
        "2 × 1 GPU and 4 CPUs, 1 × 6 CPUs"
    ]


def test_an_actor_without_a_node_holds_no_other_up(found):
    assert found["several"] == [24, ["0"]]


def test_what_asks_for_no_gpu_gets_none(found):
    assert found["without"] == [24, []]
    assert found["assigned"] == [[], ["0"]]


def test_nodes_that_are_all_there_are_asked_for_their_precision(found):
    of_the_nodes, of_this_machine = found["precisions"]
    assert of_the_nodes == of_this_machine
