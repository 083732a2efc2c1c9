"""What is made for a cluster of hosts ends with it, however it ends, and has nothing of this machine's own clusters."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from cluster.hosts import PLACE, REPOSITORY, Lan
from cluster.ray_cluster import HEAD, WORKERS, Cluster

from cluster import ray_cluster


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(dir=PLACE) as made:
        yield Path(made)


def started():
    """The processes that this one has started and not ended."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def networks():
    """The networks that this process has made and not ended."""
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    return {name for name in names if name.startswith(f"d{os.getpid() % 100000}")}


def namespaces():
    """Those of processes in which any is."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/ns/pid"):
        with contextlib.suppress(OSError):  # it ends just now
            found.add(entry.readlink())
    return found


def fail(*_, **__):
    raise TimeoutError("on purpose")


@pytest.mark.parametrize("step", ["_derived", "until", "up", "down"])
def test_a_cluster_of_which_a_step_fails_leaves_nothing_that_runs(needs_hosts, demo, monkeypatch, step):
    """With `until`, the S3 server has been started, and does not answer; with `up`, a tunnel has been, too."""
    before = started()
    if step != "until":
        monkeypatch.setattr(Cluster, "serve_photos", lambda cluster, _: cluster.start("sleep", "600", log=cluster.file))
        monkeypatch.setattr(Cluster, "up", lambda cluster: cluster.start("sleep", "600", log=cluster.file))
    monkeypatch.setattr(Cluster, step, fail)
    with pytest.raises(TimeoutError, match="on purpose"), ray_cluster.running(demo):
        pass
    assert not started() - before
    assert not networks()


def test_no_host_outlives_a_test_that_is_killed(needs_hosts, folder):
    program = """
import sys, pathlib, time
from cluster.hosts import Lan
with Lan(pathlib.Path(sys.argv[1]), (), {}) as lan:
    lan.hosts["user"].start("sleep", "600", log=lan.folder / "sleep.log")
    print(lan.prefix, lan.hosts["user"]._first(), flush=True)
    time.sleep(600)
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests")}
    command = [sys.executable, "-c", program, folder]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as test:
        prefix, first = test.stdout.readline().split()
        host = Path(f"/proc/{first}/ns/pid").readlink()
        test.kill()
    for network in ("sw", "user"):
        subprocess.run(["ip", "netns", "delete", f"{prefix}{network}"], check=True)
    end = time.monotonic() + 60
    while host in namespaces():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_host_that_does_not_start_ends_the_others(needs_hosts, folder, monkeypatch):
    before = started()
    monkeypatch.setattr("cluster.hosts.START", "echo nothing to start; exit 1")
    with pytest.raises(RuntimeError, match="does not start: nothing to start"), Lan(folder, ("head",), {}):
        pass
    assert not started() - before
    assert not networks()


def test_the_person_sees_no_state_of_this_machines_clusters(needs_hosts, folder, monkeypatch):
    """Ray keeps it in ~ and in the temporary folder, by the name of the cluster, or where the environment says."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    with (
        tempfile.TemporaryDirectory(prefix="ray-of-this-machine-", dir="/tmp") as theirs,
        Lan(folder, (HEAD, *WORKERS), {}) as lan,
    ):
        cluster = Cluster(lan)
        looked = cluster.run("bash", "-c", f"test ! -e {theirs} && touch ~/seen /tmp/seen && env")
        assert looked.returncode == 0, looked.stderr
        assert not {"RAY_ADDRESS", "TMPDIR"} & {line.partition("=")[0] for line in looked.stdout.splitlines()}
        assert not Path("/tmp/seen").exists()
        assert not Path("/root/seen").exists()
