"""A Ray cluster that `ray up` started on hosts of hosts.py, with an S3 server on its head, and jobs on it."""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from cluster.hosts import NET, PLACE, REPOSITORY, Lan

RAY = str(Path(sys.executable).with_name("ray"))
HEAD, WORKERS = "head", ("one", "two")
BUCKET, S3 = "photos", f"http://{NET}.2:5000"
DASHBOARD = "http://127.0.0.1:8265"
# All that hosts know; nothing comes from the environment of this machine.
AWS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": S3,
}
PERSON = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_API_SERVER_ADDRESS": DASHBOARD,
    "PYTHONUNBUFFERED": "1",  # a job's lines are there as it says them, though they go to a file
}

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
TELL = """
import sys, urllib.request
print(urllib.request.urlopen(urllib.request.Request(sys.argv[1], sys.argv[2].encode())).read().decode())
"""


class Cluster:
    """The hosts, as a person on the machine `user` sees them."""

    def __init__(self, lan):
        self.folder, self.hosts = lan.folder, lan.hosts
        self.file = lan.folder / "cluster.yaml"
        self.file.write_text(yaml.safe_dump(self._derived()))
        self._jobs = []

    def _derived(self):
        """cluster/onprem.yaml for these hosts, on which everything is installed."""
        config = yaml.safe_load((REPOSITORY / "cluster" / "onprem.yaml").read_text())
        addresses = [self.hosts[name].address for name in WORKERS]
        config["provider"] |= {"head_ip": self.hosts[HEAD].address, "worker_ips": addresses}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.folder / "key")}
        config["file_mounts"] = {path: path for path in config["file_mounts"] if path.endswith("auth_token")}
        config["setup_commands"] = []
        for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
            config[commands][-1] += " --num-cpus=2 --object-store-memory=300000000"
        return config

    def run(self, *command, seconds=600, **environment):
        """Runs `command` on the user's machine to its end."""
        command = self.hosts["user"].command(*command, **(PERSON | environment))
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)

    def start(self, *command, log):
        """Starts `command` on the user's machine; what it says is in the file `log`."""
        return self.hosts["user"].start(*command, log=log, **PERSON)

    def up(self):
        """`ray get-auth-token --generate`, `ray up`, and the tunnel of `ray dashboard`."""
        assert self.run(RAY, "get-auth-token", "--generate").returncode == 0
        done = self.run(RAY, "up", "-y", "--no-config-cache", self.file)
        assert done.returncode == 0, done.stdout + done.stderr
        self.start(RAY, "dashboard", self.file, log=self.folder / "tunnel.log")
        self.until(lambda: self.alive() == 3, "three nodes")

    def down(self):
        """`ray down`, after which nothing of Ray runs on any host."""
        done = self.run(RAY, "down", "-y", self.file)
        assert done.returncode == 0, done.stdout + done.stderr
        # It stops the head; the others give up a minute after they have heard the last of it.
        self.until(lambda: not any(host.rays() for host in self.hosts.values()), "nothing of Ray to run", 180)

    def alive(self):
        """How many nodes the cluster says it has."""
        done = self.run(RAY, "list", "nodes", "--address", DASHBOARD, "--format", "json", "--filter", "state=ALIVE")
        return len(json.loads(done.stdout)) if done.returncode == 0 else 0

    def training_hosts(self):
        """The hosts that have a worker of a training."""
        return [host for host in self.hosts.values() if any("RayTrainWorker" in line for line in host.rays())]

    def until(self, condition, what, seconds=300):
        """Waits until the condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(what)
            time.sleep(1)

    def submit(self, *words):
        """`ray job submit --working-dir .` with these further words, started."""
        log = self.folder / f"job-{len(self._jobs)}.log"
        process = self.start(RAY, "job", "submit", "--working-dir", ".", *words, log=log)
        self._jobs.append(Submitted(self, process, log))
        return self._jobs[-1]

    def settle(self):
        """Puts all cables back and stops the jobs that still run."""
        for host in self.hosts.values():
            host.plug()
        for job in self._jobs:
            if job.runs():
                job.stop()

    def serve_photos(self, demo):
        """Starts the S3 server on the head, which has the bucket with the demo photos then."""
        server = (sys.executable, "tests/s3_server.py", "--host", "0.0.0.0", "--port", S3.rpartition(":")[2])
        self.hosts[HEAD].start(*server, log=self.folder / "s3.log")
        self.until(lambda: self.run(sys.executable, "-c", UPLOAD, BUCKET, demo).returncode == 0, "the S3 server", 120)

    def fetch(self, prefix):
        """A folder with what the bucket has below `prefix`."""
        done = self.run(sys.executable, "-c", FETCH, BUCKET, prefix, self.folder / "fetched")
        assert done.returncode == 0, done.stderr
        return self.folder / "fetched" / prefix

    @contextlib.contextmanager
    def faults(self, **told):
        """Has the S3 server fail or dawdle as `told`; yields what it counted, which is there after the block."""
        counted = {}
        self._tell(told)
        try:
            yield counted
        finally:
            counted |= self._tell({})

    def _tell(self, told):
        done = self.run(sys.executable, "-c", TELL, f"{S3}/faults", json.dumps(told))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


class Submitted:
    """A job that was submitted."""

    def __init__(self, cluster, process, log):
        self._cluster, self._process, self._log = cluster, process, log

    def said(self):
        return self._log.read_text()

    def runs(self):
        return self._process.poll() is None

    def until(self, text, seconds=600):
        """Waits until the job has said `text`."""

        def said():
            if not self.runs() and text not in self.said():
                raise AssertionError(self.said())
            return text in self.said()

        self._cluster.until(said, f"{text!r} in\n{self.said()}", seconds)

    def result(self, seconds=1200):
        """The JSON object that the job printed last."""
        self._process.wait(seconds)
        assert self._process.returncode == 0, self.said()
        return json.loads([line for line in self.said().splitlines() if line.startswith("{")][-1])

    def failure(self, seconds=600):
        """What the job, which failed, said."""
        self._process.wait(seconds)
        assert self._process.returncode != 0, self.said()
        return self.said()

    def stop(self):
        """`ray job stop`; returns what the job said to its end."""
        (submission,) = {word.strip("'") for word in self.said().split() if word.startswith("'raysubmit_")}
        assert self._cluster.run(RAY, "job", "stop", submission).returncode == 0
        self._process.wait(300)
        return self.said()


@contextlib.contextmanager
def running(demo):
    """The cluster, up, with the photos of the folder `demo`; afterwards it is taken down, and nothing runs any more."""
    with (
        tempfile.TemporaryDirectory(dir=PLACE) as folder,
        Lan(Path(folder), (HEAD, *WORKERS), AWS) as lan,
    ):
        made = Cluster(lan)
        made.serve_photos(demo)
        made.up()
        yield made
        made.down()
