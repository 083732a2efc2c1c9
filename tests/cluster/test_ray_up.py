"""A real cluster on one machine: `ray up`, jobs over a tunnel with the token, hosts that are cut off, `ray down`.

    pytest tests/cluster -m slow        (root; Debian's iproute2, openssh-server and rsync)

Photos and outputs are in an S3 server on the head: no disk is shared. What comes out is held against local runs.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from cluster.hosts import REPOSITORY
from cluster.ray_cluster import DASHBOARD, RAY

PHOTOS = "s3://photos"
MANIFEST = ("--manifest", f"{PHOTOS}/manifest.csv")
PYTHON, FILE = ("--", "python"), ("--",)  # two of the ways in which a job is submitted, before jobs/NAME.py
NETWORK = ("--image-size", "64", "--precision", "float32")
EXTRACT = ("--model", "vgg16-gem", "--batch-size", "4", "--shard-rows", "16", *NETWORK)
EPOCHS = 8  # of some seconds each: more than it takes to notice that a host is gone
TRAIN = ("--epochs", str(EPOCHS), "--top", "64", "--batch-size", "16", "--dimension", "32", *NETWORK)
TWO_WORKERS = (*MANIFEST, *TRAIN, "--workers", "2")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


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
def assert_same_rows(cluster, local):
    """Asserts that the store `name` in the bucket has the rows that the local run made."""

    def check(name):
        found = descriptors(cluster.fetch(f"{name}/"))
        assert found.keys() == local["rows"].keys()
        for image_id, row in local["rows"].items():
            assert found[image_id]["status"] == row["status"] == "ok"
            np.testing.assert_allclose(found[image_id]["descriptor"], row["descriptor"], atol=1e-5)

    return check


@pytest.fixture(autouse=True)
def settled(cluster):
    """A test that fails leaves no job that runs, and no cable that is out, to the next."""
    yield
    cluster.settle()


def assert_same_figures(result, expected):
    for name in ("map_before", "map_fitted", "map_after"):
        assert result[name] == pytest.approx(expected[name], abs=2e-3)


def test_without_the_token_nothing_is_answered(cluster):
    ask = f"import urllib.request as u; u.urlopen('{DASHBOARD}/api/jobs/')"
    done = cluster.run(sys.executable, "-c", ask)
    assert "401" in done.stderr
    submit = (RAY, "job", "submit", "--", "true")
    assert cluster.run(*submit, RAY_AUTH_MODE="disabled").returncode != 0
    assert cluster.run(*submit, RAY_AUTH_TOKEN="0" * 64).returncode != 0


def test_the_dashboard_has_no_port_on_the_network(cluster):
    head = cluster.hosts["head"].address
    done = cluster.run(sys.executable, "-c", f"import socket; socket.create_connection(('{head}', 8265), timeout=5)")
    assert "ConnectionRefusedError" in done.stderr


def test_extract_and_evaluate_give_what_they_give_locally(cluster, local, assert_same_rows):
    done = cluster.submit(*PYTHON, "jobs/extract.py", *MANIFEST, *EXTRACT, "--out", f"{PHOTOS}/whole").result()
    assert done["computed"] == len(local["rows"])
    assert_same_rows("whole")
    measured = ("--descriptors", f"{PHOTOS}/whole", "--split", "test", "--no-report")
    submitted = cluster.submit(*PYTHON, "jobs/evaluate.py", *MANIFEST, *measured, "--out", f"{PHOTOS}/metrics")
    assert submitted.result()["map"] == pytest.approx(local["metrics"]["map"], abs=1e-4)


def test_index_search_and_mine_give_what_they_give_locally(cluster, demo, tmp_path):
    cluster.submit(*PYTHON, "jobs/extract.py", *MANIFEST, *EXTRACT, "--out", f"{PHOTOS}/spread/store").result()
    copy = cluster.fetch("spread/store/")
    places = {"cluster": f"{PHOTOS}/spread", "here": str(tmp_path)}
    (tmp_path / "store").symlink_to(copy)
    manifests = {"cluster": f"{PHOTOS}/manifest.csv", "here": str(demo / "manifest.csv")}
    commands = {
        "index": "index --descriptors {place}/store --factory IVF8,Flat --parts 3",
        "found": "search --index {place}/index --queries {place}/store --top 5 --no-report",
        "exact": "search --index {place}/store --queries {place}/store --top 5 --no-report",
        "mined": "mine --manifest {manifest} --descriptors {place}/store",
    }

    def flags(words, out, where):
        return [word.format(place=places[where], manifest=manifests[where]) for word in (*words, "--out", out)]

    for name, words in commands.items():
        job, *given = words.split()
        expected = locally(job, *flags(given, f"{{place}}/{name}", "here"))
        job = cluster.submit(*PYTHON, f"jobs/{job}.py", *flags(given, f"{{place}}/{name}", "cluster"))
        assert job.result().keys() == expected.keys()
    for name in ("found/ranked.parquet", "exact/ranked.parquet", "mined/triplets.parquet"):
        folder, _, file = name.partition("/")
        there = pq.read_table(cluster.fetch(f"spread/{folder}/") / file)
        assert there.equals(pq.read_table(tmp_path / name))


def test_a_store_of_100_ms_a_request_gives_the_same_and_is_asked_much_at_once(cluster, local, assert_same_rows):
    with cluster.faults(latency=0.1) as counted:
        job = cluster.submit(*FILE, "jobs/extract.py", *MANIFEST, *EXTRACT, "--out", f"{PHOTOS}/far")
        assert job.result()["computed"] == len(local["rows"])
    assert_same_rows("far")
    assert counted["most"] >= 8


def test_two_workers_train_on_two_hosts_as_one_does_locally(cluster, local):
    job = cluster.submit(*FILE, "jobs/train.py", *TWO_WORKERS, "--out", f"{PHOTOS}/run")
    assert_same_figures(job.result(), local["run"])


def test_a_training_whose_rank_0_fails_ends_on_all_hosts_with_the_reason(cluster):
    with cluster.faults(denied="history.csv") as counted:
        job = cluster.submit(*PYTHON, "jobs/train.py", *TWO_WORKERS, "--out", f"{PHOTOS}/denied")
        said = job.failure()
    assert counted["AccessDenied"]
    assert "exit code 1" in said
    assert f"cannot write '{PHOTOS}/denied/history.csv'" in said
    assert "Traceback" not in said
    cluster.until(lambda: not cluster.training_hosts(), "no worker to wait for the one that failed", 60)


def test_the_literal_command_trains_the_demo_on_the_head(cluster):
    # Flags of the job would be taken for those of `ray job submit`.
    trained = cluster.submit("jobs/train.py").result()
    assert trained["model"] == "/root/dim-runs/demo/model"
    assert trained["map_before"] < trained["map_fitted"] < trained["map_after"]
    written = [name for name, host in cluster.hosts.items() if (host.home / "dim-runs" / "demo" / "model").is_dir()]
    assert written == ["head"]


def test_a_local_path_is_refused_with_what_to_use(cluster):
    said = cluster.submit(*PYTHON, "jobs/extract.py", *MANIFEST, *EXTRACT, "--out", "/root/x").failure()
    assert "exit code 2" in said
    assert "'/root/x' is on the disk of one machine, and this cluster has 3; use s3://" in said


def test_a_job_that_is_stopped_ends_cleanly_and_can_be_resumed(cluster, local, assert_same_rows):
    command = (*PYTHON, "jobs/extract.py", *MANIFEST, *EXTRACT, "--out", f"{PHOTOS}/stopped")
    job = cluster.submit(*command)
    job.until("images/s")
    assert "interrupted; run the same command again to resume" in job.stop()
    assert cluster.submit(*command).result()["computed"] < len(local["rows"])
    assert_same_rows("stopped")


def test_a_host_whose_cable_is_out_for_a_while_costs_no_row(cluster, assert_same_rows):
    job = cluster.submit(*PYTHON, "jobs/extract.py", *MANIFEST, *EXTRACT, "--out", f"{PHOTOS}/cut")
    job.until("images/s")
    cluster.hosts["two"].unplug()
    cluster.until(lambda: cluster.alive() == 2, "two nodes")
    cluster.hosts["two"].plug()
    job.result()
    assert_same_rows("cut")
    cluster.until(lambda: cluster.alive() == 3, "the host is taken back", 600)


def test_a_host_whose_cable_is_out_for_a_while_costs_training_an_epoch_at_most(cluster, local):
    job = cluster.submit(*PYTHON, "jobs/train.py", *TWO_WORKERS, "--out", f"{PHOTOS}/run-cut")
    job.until(f"epoch 1 of {EPOCHS}")
    cut = cluster.training_hosts()[-1]
    cut.unplug()
    cluster.until(lambda: cluster.alive() == 2, "two nodes")
    cut.plug()
    assert_same_figures(job.result(), local["run"])
    assert "resumed after epoch" in job.said()
    cluster.until(lambda: cluster.alive() == 3, "the host is taken back", 600)


def test_a_host_that_is_gone_for_good_costs_neither_rows_nor_the_run(cluster, local, assert_same_rows):
    job = cluster.submit(*PYTHON, "jobs/extract.py", *MANIFEST, *EXTRACT, "--out", f"{PHOTOS}/lost")
    job.until("images/s")
    cluster.hosts["two"].unplug()
    job.result()
    assert_same_rows("lost")
    cluster.hosts["two"].plug()
    cluster.until(lambda: cluster.alive() == 3, "the host is taken back", 600)
    job = cluster.submit(*PYTHON, "jobs/train.py", *TWO_WORKERS, "--out", f"{PHOTOS}/run-lost")
    job.until(f"epoch 1 of {EPOCHS}")
    cluster.training_hosts()[-1].unplug()
    assert_same_figures(job.result(), local["run"])
    assert "resumed after epoch" in job.said()
