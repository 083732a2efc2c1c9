"""A real cluster on one machine: `ray up`, jobs over a tunnel with the token, hosts that are cut off, `ray down`.

    pytest tests/cluster --cluster        (root; Debian's iproute2, openssh-server and rsync)

Photos and outputs are in an S3 server on the head: no disk is shared. What comes out is held against local runs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PHOTOS = "s3://photos"
NETWORK = ("--image-size", "64", "--precision", "float32")
EXTRACT = ("--model", "vgg16-gem", "--batch-size", "4", "--shard-rows", "16", *NETWORK)
EPOCHS = 8  # of some seconds each: more than it takes to notice that a host is gone
TRAIN = ("--epochs", str(EPOCHS), "--top", "64", "--batch-size", "16", "--dimension", "32", *NETWORK)

pytestmark = pytest.mark.timeout(3600)


def locally(job, *flags):
    """The result of a job on this machine, with its own Ray."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, f"jobs/{job}.py", *map(str, flags)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def descriptors(folder):
    """The rows of a store by id, each exactly once."""
    table = ds.dataset(folder, exclude_invalid_files=True).to_table(columns=["image_id", "descriptor", "status"])
    rows = {row["image_id"]: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows
    return rows


@pytest.fixture(scope="module")
def local(demo, tmp_path_factory):
    """What this machine makes of the photos alone."""
    folder = tmp_path_factory.mktemp("local")
    manifest = ("--manifest", demo / "manifest.csv")
    locally("extract", *manifest, *EXTRACT, "--out", folder / "descriptors")
    measured = ("--descriptors", folder / "descriptors", "--split", "test", "--no-report")
    return {
        "rows": descriptors(folder / "descriptors"),
        "metrics": locally("evaluate", *manifest, *measured, "--out", folder / "metrics"),
        "run": locally("train", *manifest, *TRAIN, "--out", folder / "run", "--scratch", folder / "scratch"),
    }


@pytest.fixture
def assert_same_rows(cluster, local, tmp_path):
    """Asserts that the store `name` in the bucket has the rows that the local run made."""

    def check(name):
        found = descriptors(cluster.fetch(f"{name}/", tmp_path) / name)
        assert found.keys() == local["rows"].keys()
        for image_id, row in local["rows"].items():
            assert found[image_id]["status"] == row["status"] == "ok"
            np.testing.assert_allclose(found[image_id]["descriptor"], row["descriptor"], atol=1e-5)

    return check


def assert_same_figures(result, expected):
    for name in ("map_before", "map_fitted", "map_after"):
        assert result[name] == pytest.approx(expected[name], abs=2e-3)


def test_without_the_token_nothing_is_answered(cluster):
    ask = f"import urllib.request as u; u.urlopen('{cluster.environment['RAY_API_SERVER_ADDRESS']}/api/jobs/')"
    done = cluster.run(sys.executable, "-c", ask)
    assert "401" in done.stderr
    submit = (str(Path(sys.executable).with_name("ray")), "job", "submit", "--", "true")
    assert cluster.run(*submit, RAY_AUTH_MODE="disabled").returncode != 0
    assert cluster.run(*submit, RAY_AUTH_TOKEN="0" * 64).returncode != 0


def test_the_dashboard_has_no_port_on_the_network(cluster):
    head = cluster.hosts["head"].address
    done = cluster.run(sys.executable, "-c", f"import socket; socket.create_connection(('{head}', 8265), timeout=5)")
    assert "ConnectionRefusedError" in done.stderr


def test_extract_and_evaluate_give_what_they_give_locally(cluster, local, assert_same_rows):
    manifest = ("--manifest", f"{PHOTOS}/manifest.csv")
    done = cluster.submit("extract", *manifest, *EXTRACT, "--out", f"{PHOTOS}/whole").result()
    assert done["computed"] == len(local["rows"])
    assert_same_rows("whole")
    measured = ("--descriptors", f"{PHOTOS}/whole", "--split", "test", "--no-report")
    metrics = cluster.submit("evaluate", *manifest, *measured, "--out", f"{PHOTOS}/metrics").result()
    assert metrics["map"] == pytest.approx(local["metrics"]["map"], abs=1e-4)


def test_two_workers_train_on_two_hosts_as_one_does_locally(cluster, local):
    flags = ("--manifest", f"{PHOTOS}/manifest.csv", *TRAIN, "--workers", 2, "--out", f"{PHOTOS}/run")
    assert_same_figures(cluster.submit("train", *flags).result(), local["run"])


def test_a_local_path_is_refused_with_what_to_use(cluster):
    flags = ("--manifest", f"{PHOTOS}/manifest.csv", *EXTRACT, "--out", "runs/x")
    job = cluster.submit("extract", *flags)
    job.until("'runs/x' is on the disk of one machine, and this cluster has 3; use s3://")


def test_a_job_that_is_stopped_ends_cleanly_and_can_be_resumed(cluster, local, assert_same_rows):
    flags = ("--manifest", f"{PHOTOS}/manifest.csv", *EXTRACT, "--out", f"{PHOTOS}/stopped")
    job = cluster.submit("extract", *flags)
    job.until("images/s")
    assert "interrupted; run the same command again to resume" in job.stop()
    assert cluster.submit("extract", *flags).result()["computed"] < len(local["rows"])
    assert_same_rows("stopped")


def test_a_host_whose_cable_is_out_for_a_while_costs_no_row(cluster, assert_same_rows):
    flags = ("--manifest", f"{PHOTOS}/manifest.csv", *EXTRACT, "--out", f"{PHOTOS}/cut")
    job = cluster.submit("extract", *flags)
    job.until("images/s")
    cluster.hosts["two"].unplug()
    cluster.until(lambda: cluster.alive() == 2, "two nodes")
    cluster.hosts["two"].plug()
    job.result()
    assert_same_rows("cut")
    cluster.until(lambda: cluster.alive() == 3, "the host is taken back", 600)


def test_a_host_whose_cable_is_out_for_a_while_costs_training_an_epoch_at_most(cluster, local):
    flags = ("--manifest", f"{PHOTOS}/manifest.csv", *TRAIN, "--workers", 2, "--out", f"{PHOTOS}/run-cut")
    job = cluster.submit("train", *flags)
    job.until(f"epoch 1 of {EPOCHS}")
    cut = cluster.training_host()
    cut.unplug()
    cluster.until(lambda: cluster.alive() == 2, "two nodes")
    cut.plug()
    assert_same_figures(job.result(), local["run"])
    assert "resumed after epoch" in job.said()
    cluster.until(lambda: cluster.alive() == 3, "the host is taken back", 600)


def test_a_host_that_is_gone_for_good_costs_neither_rows_nor_the_run(cluster, local, assert_same_rows):
    flags = ("--manifest", f"{PHOTOS}/manifest.csv", *EXTRACT, "--out", f"{PHOTOS}/lost")
    job = cluster.submit("extract", *flags)
    job.until("images/s")
    cluster.hosts["two"].unplug()
    job.result()
    assert_same_rows("lost")
    cluster.hosts["two"].plug()
    cluster.until(lambda: cluster.alive() == 3, "the host is taken back", 600)
    flags = ("--manifest", f"{PHOTOS}/manifest.csv", *TRAIN, "--workers", 2, "--out", f"{PHOTOS}/run-lost")
    job = cluster.submit("train", *flags)
    job.until(f"epoch 1 of {EPOCHS}")
    cluster.training_host().unplug()
    assert_same_figures(job.result(), local["run"])
    assert "resumed after epoch" in job.said()
