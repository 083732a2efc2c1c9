"""Which nodes a cluster may start, and which paths a job refuses there. The clusters are simulated."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import dim
from dim.app import cluster, ray_connection
from dim.errors import JobFailed, UserError
from dim.io import files

SEVERAL = ({"CPU": 2}, {"CPU": 8}, {"CPU": 8, "GPU": 1})


@pytest.fixture
def made_up(monkeypatch):
    """A cluster of nodes with these resources, to which the job was submitted with a working directory, or without."""

    def of(*nodes, working_dir=None, labels=()):
        total = {name: sum(node.get(name, 0) for node in nodes) for node in nodes for name in node}
        monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: total)
        alive = [{"Alive": True, "Resources": node, "Labels": dict(labels)} for node in nodes]
        monkeypatch.setattr(cluster.ray, "nodes", lambda: [*alive, {"Alive": False, "Resources": {}, "Labels": {}}])
        environment = {"working_dir": working_dir} if working_dir else {}
        context = SimpleNamespace(runtime_env=environment)
        monkeypatch.setattr(cluster.ray, "get_runtime_context", lambda: context)

    return of


@pytest.mark.parametrize("path", ["/data/1.jpg", "runs/x", "~/photos"])
def test_one_machines_disk_is_refused_where_there_are_several(made_up, path):
    made_up(*SEVERAL)
    with pytest.raises(UserError, match=r"on the disk of one machine, and this cluster has 3; use s3://… or gs://…"):
        cluster.require_shared(["s3://bucket/0.jpg", path])


def test_one_node_may_use_its_disk(made_up):
    made_up({"CPU": 8})
    cluster.require_shared(["/data/1.jpg"], written=True)


@pytest.mark.parametrize(
    ("head", "labels"),
    [
        ({"CPU": 0, "autoscaled_8CPU_1GPU": 8}, {}),  # the shipped cluster before its first worker
        ({"CPU": 4, "autoscaled_16CPU": 4}, {}),
        ({}, {}),  # `ray start --head --num-cpus 0`
        ({"CPU": 4}, {"ray.io/node-id": "a", "ray.io/node-group": "head"}),  # KubeRay, or `ray up`
    ],
)
def test_one_machines_disk_is_refused_where_others_may_come(made_up, head, labels):
    made_up(head, labels=labels)
    for written in (False, True):
        with pytest.raises(UserError, match=r"^'/data/1\.jpg' is on the disk of one machine, .* starts others for"):
            cluster.require_shared(["s3://bucket/0.jpg", "/data/1.jpg"], written)
    cluster.require_shared(["s3://bucket/0.jpg", "file:///mnt/1.jpg"], written=True)


def test_a_real_ray_of_one_node_may_use_its_disk(ray_session):
    cluster.require_shared(["/data/1.jpg"], written=True)


def test_stores_shared_folders_and_what_the_job_brings_along_are_taken(made_up, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    made_up(*SEVERAL, working_dir="gcs://_ray_pkg.zip")
    shipped = str(Path(dim.__file__).parent / "assets" / "demo" / "manifest.csv")
    cluster.require_shared(["s3://bucket/1.jpg", "file:///mnt/1.jpg", "photos.csv", str(tmp_path / "1.jpg"), shipped])
    with pytest.raises(UserError, match="'runs/x' is on the disk of one machine"):
        cluster.require_shared(["runs/x"], written=True)
    made_up(*SEVERAL)
    with pytest.raises(UserError, match=r"'photos\.csv' is on"):
        cluster.require_shared(["photos.csv"])


def test_an_output_of_a_submitted_job_is_refused_before_anything_is_written(made_up, monkeypatch, tmp_path):
    from dim.app import output_folder
    from dim.nightly.config import Measurement

    made_up(*SEVERAL)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: True)
    config = Measurement(name="any", manifest="any")
    with (
        pytest.raises(UserError, match="on the disk of one machine"),
        output_folder.opened(str(tmp_path / "x"), "x", config, {}),
    ):
        pass
    manifest = tmp_path / "photos.csv"
    manifest.write_text("")
    inputs = {"manifest": str(manifest), "model": "vgg16-gem"}
    monkeypatch.setattr(files, "make_folder", lambda _: pytest.fail("written"))
    with (
        pytest.raises(UserError, match=r"photos\.csv' is on the disk"),
        output_folder.opened("s3://b/x", "x", config, inputs),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "error", "expected", "said"),
    [
        (
            None,
            Exception("The current node timed out during startup. This could\nhappen because it is overloaded."),
            JobFailed,
            r"^Ray did not start: .* could happen .* overloaded; .* run the same command again later$",
        ),
        (None, ValueError("no such\nversion."), JobFailed, "^Ray did not start: no such version$"),
        (
            "auto",
            ConnectionError("Could not find any running Ray instance."),
            UserError,
            r"^no Ray at RAY_ADDRESS='auto' \(Could not find any .*\); start it, or unset RAY_ADDRESS$",
        ),
    ],
)
def test_a_ray_that_does_not_start_is_said_in_one_line(monkeypatch, address, error, expected, said):
    def failing(**options):
        raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", failing)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    with pytest.raises(expected, match=said), cluster.connected():
        pass


_LATE_ONCE = """
import json
from ray._private import node, services
from dim.app import cluster, logs, terminal

ask, asked = services.get_node, []

def late(*arguments):
    asked.append(1)
    if len(asked) == 1:
        raise OSError("The current node timed out during startup.")
    return ask(*arguments)

services.get_node = late
with terminal.of_job(verbose=False), cluster.connected():
    children = [process.name() for process in node.psutil.Process().children()]
print(json.dumps(children))
"""


@pytest.mark.slow
def test_a_ray_that_is_late_is_started_again_and_leaves_nothing_running(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    command = [sys.executable, "-c", _LATE_ONCE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    assert "Ray was not up in time, as the machine is busy; starting it again" in done.stderr
    children = json.loads(done.stdout)
    assert children.count("raylet") == children.count("gcs_server") == 1


def test_a_ray_that_is_always_late_ends_the_job(monkeypatch, caplog):
    def late(**_):
        raise OSError("The current node timed out during startup.")

    caplog.set_level(logging.INFO, "dim")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", late)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    with pytest.raises(JobFailed, match="run the same command again later"), cluster.connected():
        pass
    begun, *again, ended = caplog.messages
    assert begun == "starting Ray" and ended.startswith("starting Ray: ")
    assert again == ["Ray was not up in time, as the machine is busy; starting it again"] * (ray_connection.TRIES - 1)
