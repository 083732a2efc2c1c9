"""A job as a process with its own Ray, watched and killed; only processes of its own session are ever touched."""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HOOKS = Path(__file__).parent / "hooks"
STARTS = 5
SECONDS = 900  # until a job is given up, on a machine that others load
# What each process calls itself.
NAMES = {
    "machine": r"",
    "raylet": r"/raylet/raylet ",
    "gcs": r"/gcs/gcs_server ",
    "decoder": r"^ray::MapBatches\(_decode\)|^ray::IDLE",
    "network": r"^ray::MapWorker\(MapBatches\(Network\)\)",
    "network at work": r"^ray::MapWorker\(MapBatches\(Network\)\)\.submit",
    "worker": r"^ray::RayTrainWorker",
    "task": r"^ray::(?!IDLE|\w*Agent)\w+ *$",  # of `dim.app.tasks.spread`
}


class Job:
    """A job in a session of its own, on its own Ray or on that at `address`.

    With `task_seconds`, its own Ray runs even if the job would work in threads, and each task takes so much longer.
    """

    def __init__(self, name, out, *flags, decode_seconds=0.0, write_seconds=0.0, task_seconds=None, address=None):
        self.out = Path(str(out).removeprefix("file://"))
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
            "PYTHONPATH": os.pathsep.join(map(str, (HOOKS, REPOSITORY))),
            "DIM_TEST_DECODE_SECONDS": str(decode_seconds),
            "DIM_TEST_WRITE_SECONDS": str(write_seconds),
        }
        if address:
            environment |= {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
        slowly = () if task_seconds is None else (Path(__file__).with_name("on_ray.py"), task_seconds)
        command = [sys.executable, *slowly, f"jobs/{name}.py", "--out", out, *flags]
        self.began = time.time()
        self.errors = open(f"{self.out}.stderr", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [str(part) for part in command],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,
            # What a shell starts in the background ignores Ctrl-C, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )

    def pids(self, name="machine"):
        """The job's live processes, all or those that call themselves `name`."""
        if name == "driver":
            return [self.process.pid]
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and self._session(entry) == self.process.pid:
                with contextlib.suppress(OSError):  # it ends just now
                    called = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if re.search(NAMES[name], called):
                        found.append(int(entry.name))
        return sorted(found)

    @staticmethod
    def _session(entry):
        try:
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            return None
        return None if state == "Z" else int(session)

    def kill(self, name="machine", number=signal.SIGKILL):
        """Kills one process of this name, or all of the job's. Returns how many."""
        pids = self.pids(name) if name == "machine" else self.pids(name)[:1]
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        return len(pids)

    def shards(self):
        """The finished shards: name → (sha256, time of writing)."""
        return {
            path.stem: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
            for path in self.out.glob("part-*.parquet")
        }

    def epochs(self):
        """The epochs whose checkpoint is written."""
        return sorted(int(path.stem.removeprefix("epoch-")) for path in self.out.glob("checkpoints/epoch-*.json"))

    def begins(self):
        """Waits until the job writes, or computes in tasks; False where Ray gave up its own start, for which it allows
        30 s, as it may when the machine is loaded.
        """
        record = self.out / "run.json"
        if self.until(lambda: (record.exists() and record.stat().st_mtime > self.began) or self.pids("task")):
            return True
        return "timed out during startup" not in self.said()

    def until(self, condition, seconds=SECONDS, pause=0.02):
        """Waits until the condition holds; False where the job ends before."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(pause)
        raise TimeoutError(self.said())

    def said(self):
        self.errors.seek(0)
        return self.errors.read()

    def end(self, seconds=SECONDS):
        """Exit status and the result that it printed, if any; nothing of the job runs on."""
        try:
            printed, _ = self.process.communicate(timeout=seconds)
            limit = time.monotonic() + 180  # on a loaded machine, some of Ray's processes are still starting
            while self.pids() and time.monotonic() < limit:
                time.sleep(0.1)
            left = self.pids()
        finally:
            self.kill()
            self.process.wait()
        assert not left, f"{left} run on"
        return self.process.returncode, json.loads(printed.splitlines()[-1]) if printed else None


@contextlib.contextmanager
def jobs():
    """Starts jobs; none of them outlives the block."""
    started = []

    def begin(*arguments, **options):
        for _ in range(STARTS):
            started.append(Job(*arguments, **options))
            if started[-1].begins():
                break
        return started[-1]

    try:
        yield begin
    finally:
        for job in started:
            job.kill()
            job.process.wait()
            job.process.stdout.close()
            job.errors.close()


@pytest.fixture
def start():
    """Starts jobs that end with the test."""
    with jobs() as begin:
        yield begin


@pytest.fixture(scope="session")
def start_once():
    """Starts jobs whose outcome several tests look at."""
    with jobs() as begin:
        yield begin


@pytest.fixture
def out(tmp_path):
    """Where a job writes."""
    return tmp_path / "out"
