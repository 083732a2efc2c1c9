"""Leases: one writer at a time on an object store, here a local folder in its place, and an S3 server."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pyarrow.fs as pafs
import pytest

import dim.train
from dim.app import output_folder
from dim.errors import InUse, JobFailed, UserError
from dim.io import files, lease, local_copies
from dim.train import job as task


@dataclass(frozen=True)
class Config:
    size: int = 3


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that `s3://bucket` names."""
    local, store = files.locate, pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    monkeypatch.setattr(files, "locate", lambda uri: (store, uri[5:]) if uri.startswith("s3://") else local(uri))
    (tmp_path / "bucket").mkdir()
    return tmp_path / "bucket"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "SECONDS", 2.0)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)


def leases(bucket):
    return [path for path in bucket.iterdir() if path.name.startswith(lease.PREFIX)]


def hold(holder="one"):
    return lease.held("s3://bucket", holder)


def test_a_second_writer_is_refused_and_told_who_the_first_is(bucket):
    with hold("ann@here, process 7"):
        with pytest.raises(UserError, match="'s3://bucket' is being written by ann@here, process 7; wait for it"):
            hold().__enter__()
        assert len(leases(bucket)) == 1
    assert not leases(bucket)
    with hold():
        pass


def test_who_only_asks_disturbs_nobody(bucket):
    lease.require_free("s3://bucket")
    with hold("ann"):
        for _ in range(2):
            with pytest.raises(InUse, match="'s3://bucket' is being written by ann; wait for it or stop it"):
                lease.require_free("s3://bucket")
        (held,) = bucket.iterdir()
        past = time.time() - lease.SECONDS - 1
        os.utime(held, (past, past))
        lease.require_free("s3://bucket")  # its holder is dead
    assert not [*bucket.iterdir()]


def test_a_lease_is_renewed_as_long_as_its_holder_lives(bucket, quick):
    with hold():
        time.sleep(3)
        with pytest.raises(UserError):
            hold().__enter__()


def test_a_dead_writers_lease_is_taken_over(bucket):
    dead = bucket / f"{lease.PREFIX}dead"
    dead.write_text('{"holder": "bob"}')
    with pytest.raises(UserError, match="by bob"):
        hold().__enter__()
    os.utime(dead, (time.time() - lease.SECONDS - 1,) * 2)
    with hold():
        assert dead not in leases(bucket)


def test_a_writer_taken_for_dead_stops(bucket, quick):
    with pytest.raises(JobFailed, match="could not renew its lease on 's3://bucket' in time"), hold():
        leases(bucket)[0].unlink()
        time.sleep(60)


def test_a_store_that_no_longer_answers_stops_the_writer(bucket, quick, monkeypatch):
    def unanswered(*_):
        raise OSError("no route")

    with pytest.raises(JobFailed, match="could not renew"), hold(), monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", unanswered)
        time.sleep(60)


def test_an_output_on_a_store_has_one_writer(bucket):
    def opened():
        return output_folder.opened("s3://bucket/out", "extract", Config(), {})

    with opened() as out:
        with pytest.raises(UserError, match=rf"'s3://bucket/out' is being written by .*, process {os.getpid()}, since"):
            opened().__enter__()
        out.finish({})
    assert sorted(path.name for path in (bucket / "out").iterdir()) == ["result.json", "run.json"]


def test_of_many_that_come_at_once_never_two_write(bucket):
    gate, inside, most, wrote = threading.Barrier(8), set(), [], []

    def write(number):
        gate.wait()
        try:
            with hold(str(number)):
                inside.add(number)
                most.append(len(inside))
                time.sleep(0.05)
                inside.remove(number)
                wrote.append(number)
        except UserError as error:
            assert "is being written by" in str(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) <= {1} and not leases(bucket)


@pytest.mark.slow
def test_a_job_that_was_killed_is_taken_over_on_s3(s3, monkeypatch):
    folder = s3.bucket("lease")
    program = f"""
import sys
from dim.io import lease
lease.SECONDS, lease.RENEW_SECONDS = 4.0, 0.5
with lease.held({folder!r}, "the first"):
    print("writing", flush=True)
    sys.stdin.read()
"""
    monkeypatch.setattr(lease, "SECONDS", 4.0)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.5)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout.readline() == "writing\n"
        time.sleep(6)  # it lives on
        with pytest.raises(UserError, match="by the first"):
            lease.held(folder, "the second").__enter__()
        writer.kill()
    time.sleep(6)
    with lease.held(folder, "the second"):
        assert len(files.names(folder)) == 1


WRITES_ON = """
    for number in range(40):
        time.sleep(2)  # the test stops the process here, where no request is under way
        files.write_bytes(out.path("photos"), str(number).encode())
"""
WAITS = """
    threading.Event().wait(120)
"""
IN_NATIVE_CODE = """
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with contextlib.suppress(BaseException):
            ctypes.CDLL(None).sleep(1)
"""
WRITER = """
import contextlib, ctypes, threading, time
from dataclasses import dataclass
from dim.app import cli, output_folder
from dim.io import files, lease
from dim.app.config import option

lease.SECONDS, lease.RENEW_SECONDS, lease.GRACE = 3.0, 0.5, 2.0

@dataclass(frozen=True)
class Config:
    out: str = option(help="where to")

def run(config):
    with output_folder.opened(config.out, "extract", config, {}) as out:
        files.write_bytes(out.path("photos"), b"of the first")
        BODY
        return out.finish({"by": "the first"})

cli.main(run, Config, "It writes.")
"""


def contents(folder):
    return {name: files.read_bytes(f"{folder}/{name}") for name in files.names(folder) if "lease" not in name}


@pytest.mark.slow
def test_a_writer_that_slept_while_another_took_over_writes_nothing_more(s3, monkeypatch, tmp_path):
    monkeypatch.setattr(lease, "SECONDS", 3.0)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.5)
    bucket = s3.bucket("asleep")
    started = {}
    for number, body in enumerate((WRITES_ON, WAITS, IN_NATIVE_CODE)):
        program = tmp_path / f"job{number}.py"
        program.write_text(WRITER.replace("BODY", body.replace("\n", "\n    ")))
        started[f"{bucket}/{number}"] = subprocess.Popen(
            [sys.executable, program, "--out", f"{bucket}/{number}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # noqa: PLW1509  (as in the background)
        )
    try:
        for folder, writer in started.items():
            while "photos" not in files.names(folder):
                assert writer.poll() is None, writer.stderr.read()
                time.sleep(0.1)
            writer.send_signal(signal.SIGSTOP)
        time.sleep(5)
        for folder, writer in started.items():
            with output_folder.opened(folder, "extract", Config(), {}) as out:
                files.write_bytes(out.path("photos"), b"of the second")
                before = contents(folder)
                writer.send_signal(signal.SIGCONT)
                printed, said = writer.communicate(timeout=60)
                assert (writer.returncode, printed) == (1, "")
                assert f"failed: this job could not renew its lease on {folder!r}" in said.splitlines()[-1]
                assert contents(folder) == before
                out.finish({"by": "the second"})
            assert files.read_json(f"{folder}/result.json") == {"by": "the second"}
    finally:
        for writer in started.values():
            writer.kill()
            writer.communicate()


def test_a_writer_that_wakes_and_does_not_know_yet_writes_nothing(bucket, monkeypatch):
    with pytest.raises(JobFailed, match="could not renew its lease"), hold():
        files.write_bytes("s3://bucket/a", b"in time")
        now = lease._now() + lease.SECONDS
        monkeypatch.setattr(lease, "_now", lambda: now)
        for write in (
            lambda: files.write_bytes("s3://bucket/a", b"late"),
            lambda: files.delete("s3://bucket/a"),
            lambda: files.make_folder("s3://bucket/b"),
            lambda: files.delete_folder("s3://bucket"),
        ):
            with pytest.raises(JobFailed, match="could not renew its lease"):
                write()
        with pytest.raises(JobFailed, match="could not renew"), local_copies.path_to_write("s3://bucket/a") as path:
            Path(path).write_bytes(b"late")
        files.write_bytes("s3://bucketful", b"another place")
    assert (bucket / "a").read_bytes() == b"in time"
    assert len(leases(bucket)) == 1  # another writer decides, by the store's clock, when it has expired


def test_who_writes_on_a_holders_behalf_stops_with_it(bucket, monkeypatch):
    def write(job):
        files.write_bytes("s3://bucket/checkpoint", job.content)

    loop = SimpleNamespace(run=write)
    monkeypatch.setattr(dim.train, "loop", loop, raising=False)
    monkeypatch.setitem(sys.modules, "dim.train.loop", loop)
    with hold():
        claims = pickle.loads(pickle.dumps(lease.claims()))
        task.train_worker({"job": SimpleNamespace(claims=claims, content=b"in time")})
    assert lease.claims() == ()
    with pytest.raises(JobFailed, match="could not renew its lease on 's3://bucket'"):
        task.train_worker({"job": SimpleNamespace(claims=claims, content=b"late")})
    assert (bucket / "checkpoint").read_bytes() == b"in time"
    files.write_bytes("s3://bucket/other", b"")  # after the block, no lease is required
