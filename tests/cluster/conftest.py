"""A Ray cluster of three hosts, started by `ray up`, an S3 server on its head. Behind `--cluster`, as it takes long."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
HEAD, WORKERS = "head", ("one", "two")
BUCKET, S3_PORT = "photos", 5000
DASHBOARD = "http://127.0.0.1:8265"

UPLOAD = """
import sys, boto3, pathlib
bucket, demo = sys.argv[1], pathlib.Path(sys.argv[2])
s3 = boto3.client("s3")
s3.create_bucket(Bucket=bucket)
for path in demo.rglob("*.*"):
    s3.upload_file(str(path), bucket, str(path.relative_to(demo)))
"""
FETCH = """
import sys, boto3, pathlib
bucket, prefix, folder = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
s3 = boto3.client("s3")
for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
    for found in page.get("Contents", []):
        if found["Key"].endswith("/"):  # how a folder is written down
            continue
        (folder / found["Key"]).parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(bucket, found["Key"], str(folder / found["Key"]))
"""


def pytest_addoption(parser):
    parser.addoption("--cluster", action="store_true", help="run jobs on a cluster of network namespaces (root)")


class Cluster:
    """The hosts, as a person on the machine `user` sees them."""

    def __init__(self, lan):
        self.lan, self.hosts = lan, lan.hosts
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))},
            **lan.environment,
            "HOME": str(lan.hosts["user"].home),
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_API_SERVER_ADDRESS": DASHBOARD,
        }
        self.file = lan.folder / "cluster.yaml"
        self.file.write_text(yaml.safe_dump(self._derived()))
        self._running = []

    def _derived(self):
        """cluster/onprem.yaml for these hosts, on which everything is installed."""
        config = yaml.safe_load((REPOSITORY / "cluster" / "onprem.yaml").read_text())
        addresses = [self.hosts[name].address for name in WORKERS]
        config["provider"] |= {"head_ip": self.hosts[HEAD].address, "worker_ips": addresses}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.lan.folder / "key")}
        config["file_mounts"] = {path: path for path in config["file_mounts"] if path.endswith("auth_token")}
        config["setup_commands"] = []
        for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
            config[commands][-1] += " --num-cpus=2 --object-store-memory=300000000"
        return config

    def run(self, *command, seconds=600, **environment):
        """Runs `command` on the user's machine to its end."""
        return subprocess.run(
            self.lan.user.command(*command),
            env=self.environment | environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def start(self, *command, name):
        """Starts `command` on the user's machine; what it says is in the file `name`."""
        with (self.lan.folder / name).open("w") as log:
            process = subprocess.Popen(
                self.lan.user.command(*command), env=self.environment, cwd=REPOSITORY, stdout=log, stderr=log
            )
        self._running.append(process)
        return process

    def up(self):
        """`ray get-auth-token --generate`, `ray up`, and the tunnel of `ray dashboard`."""
        assert self.run(RAY, "get-auth-token", "--generate").returncode == 0
        done = self.run(RAY, "up", "-y", "--no-config-cache", self.file)
        assert done.returncode == 0, done.stdout + done.stderr
        self.start(RAY, "dashboard", self.file, name="tunnel.log")
        self.until(lambda: self.alive() == 3, "three nodes")

    def down(self):
        """`ray down`, and the end of the tunnel and the S3 server."""
        done = self.run(RAY, "down", "-y", self.file)
        for process in self._running:
            process.terminate()
            process.wait()
        assert done.returncode == 0, done.stdout + done.stderr

    def alive(self):
        """How many nodes the cluster says it has."""
        done = self.run(RAY, "list", "nodes", "--address", DASHBOARD, "--format", "json", "--filter", "state=ALIVE")
        return len(json.loads(done.stdout)) if done.returncode == 0 else 0

    def training_host(self):
        """A host, not the head, that has a worker of the training that runs."""
        hosts = [self.hosts[name] for name in WORKERS]
        return next(host for host in hosts if any("RayTrainWorker" in line for line in host.rays()))

    def until(self, condition, what, seconds=300):
        """Waits until the condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(what)
            time.sleep(1)

    def submit(self, job, *flags):
        """`ray job submit` of a job, started."""
        command = [RAY, "job", "submit", "--working-dir", ".", "--", "python", f"jobs/{job}.py", *map(str, flags)]
        log = f"{job}-{len(self._running)}.log"
        return Submitted(self, self.start(*command, name=log), self.lan.folder / log)

    def serve_photos(self, demo):
        """Starts the S3 server on the head, which has the bucket with the demo photos then."""
        server = self.hosts[HEAD].command(sys.executable, REPOSITORY / "tests" / "s3_server.py")
        with (self.lan.folder / "s3.log").open("w") as log:
            process = subprocess.Popen(
                [*server, "--host", "0.0.0.0", "--port", str(S3_PORT)], env=self.environment, stdout=log, stderr=log
            )
        self._running.append(process)
        self.until(lambda: self.run(sys.executable, "-c", UPLOAD, BUCKET, demo).returncode == 0, "the S3 server", 120)

    def fetch(self, prefix, folder):
        """Copies what the bucket has below `prefix` into `folder`."""
        done = self.run(sys.executable, "-c", FETCH, BUCKET, prefix, folder)
        assert done.returncode == 0, done.stderr
        return folder


class Submitted:
    """A job that was submitted."""

    def __init__(self, cluster, process, log):
        self._cluster, self._process, self._log = cluster, process, log

    def said(self):
        return self._log.read_text()

    def until(self, text, seconds=600):
        """Waits until the job has said `text`."""

        def said():
            if self._process.poll() is not None and text not in self.said():
                raise AssertionError(self.said())
            return text in self.said()

        self._cluster.until(said, f"{text!r} in\n{self.said()}", seconds)

    def result(self, seconds=1200):
        """The JSON object that the job printed last."""
        self._process.wait(seconds)
        assert self._process.returncode == 0, self.said()
        return json.loads([line for line in self.said().splitlines() if line.startswith("{")][-1])

    def stop(self):
        """`ray job stop`; returns what the job said to its end."""
        (submission,) = {word.strip("'") for word in self.said().split() if word.startswith("'raysubmit_")}
        assert self._cluster.run(RAY, "job", "stop", submission).returncode == 0
        self._process.wait(300)
        return self.said()


@pytest.fixture(scope="module")
def cluster(request, demo):
    """The cluster, up; afterwards it is taken down, and nothing of Ray runs on any host."""
    if not request.config.getoption("--cluster", False):
        pytest.skip("takes a quarter of an hour: pytest tests/cluster --cluster")
    hosts = _hosts()
    if lacking := hosts.missing():
        pytest.skip(f"needs {lacking}")
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{hosts.NET}.2:{S3_PORT}",
    }
    # Not in /tmp, of which each host has its own.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        lan = hosts.Lan(Path(folder), (HEAD, *WORKERS), environment)
        try:
            made = Cluster(lan)
            made.serve_photos(demo)
            made.up()
            yield made
            for host in lan.hosts.values():
                host.plug()
            made.down()
            # `ray down` stops the head; the others give up a minute after they have heard the last of it.
            made.until(lambda: not any(host.rays() for host in lan.hosts.values()), "nothing of Ray to run", 180)
        finally:
            lan.close()


def _hosts():
    known = importlib.util.spec_from_file_location("hosts", Path(__file__).with_name("hosts.py"))
    module = importlib.util.module_from_spec(known)
    known.loader.exec_module(module)
    return module
