"""The life of an output folder: one writer at a time, run.json while and after it runs, result.json at its end."""

import contextlib
import dataclasses
import datetime
import fcntl
import importlib.metadata
import os
import platform
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import dim
from dim.app import logs
from dim.errors import JobFailed, UserError
from dim.io import files, lease, local_files, seal
from dim.io.seal import Seal

FORMAT_VERSION = 1
RECORD, RESULT, LOCK = seal.RECORD, "result.json", ".lock"
# The status in run.json. A job that was killed leaves "running", too, but no lock and no live lease.
RUNNING, DONE, STOPPED, FAILED = "running", "done", "stopped", "failed"
REPLACED = "replaces"  # in the run.json of a job that runs: the files that the folder had before
_PACKAGES = ("ray", "tensorflow", "keras", "numpy", "pillow", "pyarrow", "scikit-learn", "faiss-cpu")


def _versions() -> dict[str, str]:
    found = {"dim": dim.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def record_of(folder: str) -> dict[str, Any] | None:
    """The run.json of `folder`, None where it has none.

    Raises UserError where it is no record of a job, or of a format that this dim doesn't know.
    """
    uri = files.join(folder, RECORD)
    if not files.exists(uri):
        return None
    record = files.read_json(uri)
    if not isinstance(record, dict) or "job" not in record:
        raise UserError(f"{uri!r} is no record of a job of dim's; name another folder")
    version = record.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UserError(f"{uri!r} has format version {version!r}, this dim reads {FORMAT_VERSION}; use the dim of then")
    return record


def finished(folder: str) -> dict[str, Any] | None:
    """The run.json of `folder`, None where it has none. Raises UserError where the job that writes it is not done."""
    record = record_of(folder)
    if record is not None and record.get("status", DONE) != DONE:
        raise UserError(f"{folder!r} was never finished; run {record['job']}.py again")
    return record


def whole(folder: str) -> Seal | None:
    """The seal of `folder`, whose files are all there and have their sizes; None where it was made without one.

    Raises UserError where a file is missing or another, and where the job that writes the folder has not ended.
    """
    record = finished(folder)
    sealed = seal.of_record(record, folder) if record else None
    if record and sealed:
        seal.require_whole(folder, sealed, record["job"])
    return sealed


def _lock_file(uri: str) -> TextIO:
    def not_followed(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)  # another file would be overwritten

    try:
        return open(files.locate(uri)[1], "a+", encoding="utf-8", opener=not_followed)
    except OSError as error:
        raise UserError(f"cannot write {uri!r} ({files.reason(error)}); choose another folder, or delete it") from error


@contextlib.contextmanager
def _lock(folder: str) -> Iterator[None]:
    # The kernel drops the lock of a process that dies, so a dead writer's is free at once.
    with _lock_file(files.join(folder, LOCK)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(f"{folder!r} is being written by {file.read().strip()}; wait for it or stop it") from error
        file.truncate(0)
        file.write(_holder())
        file.flush()
        yield


def _holder() -> str:
    user = os.environ.get("USER", f"user {os.getuid()}")
    return f"{user}@{socket.gethostname()}, process {os.getpid()}, since {_now()}"


class Output:
    """An output folder that this process writes; made by `opened`."""

    def __init__(self, folder: str, record: dict[str, Any]) -> None:
        self.folder = folder
        self._record = record
        self._names: set[str] = set()
        self._before = before = record_of(folder) or {}
        # What is not written again goes, once this run is whole.
        self._record[REPLACED] = seal.names(before.get(seal.FILES) or before.get(REPLACED) or [], folder)
        files.delete(files.join(folder, RESULT))
        local_files.sweep(folder)
        self._write()

    def _write(self) -> None:
        files.write_json(files.join(self.folder, RECORD), self._record)

    def path(self, name: str) -> str:
        """Where to write the file `name`, which will belong to the folder and be sealed with it."""
        self._names.add(name)
        return files.join(self.folder, name)

    def finish(self, result: dict[str, Any], known: Mapping[str, dict[str, Any]] | None = None) -> dict[str, Any]:
        """Seals what was written, records what was done, in run.json and as result.json, and returns it.

        `known` are files that need not be read again, by name, as they shall stand in the seal.
        """
        sealed = seal.of(self.folder, self._names, known or {})
        replaced = {*self._record[REPLACED]} - sealed.keys()
        files.delete_all(files.join(self.folder, name) for name in replaced)
        files.write_json(files.join(self.folder, RESULT), result)
        done = {key: value for key, value in self._record.items() if key != REPLACED}
        done |= {"status": DONE, "finished": _now(), "counts": result} | ({seal.FILES: sealed} if sealed else {})
        files.write_json(files.join(self.folder, RECORD), done)
        self._record = done  # only now: what fails before has ended the job, and is told
        return result

    def ended(self, error: BaseException) -> None:
        """Records that `error` ended the job before `finish`, as far as anything can still be written.

        A mistake of the user's leaves no trace of a folder that was not there before, and an output as it was.
        """
        if self._record["status"] == DONE:
            return
        with contextlib.suppress(Exception):  # the disk or the lease may be what ended it, and that is what counts
            if isinstance(error, UserError) and self._undone():
                return
            known = isinstance(error, UserError | JobFailed)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            ended = {"status": FAILED, "reason": logs.message(reason)}
            if not isinstance(error, Exception):  # Ctrl-C, or `ray job stop`
                ended = {"status": STOPPED, "reason": "interrupted"}
            self._record |= {"finished": _now(), **ended}
            self._write()

    def _undone(self) -> bool:
        """Makes the folder what it was before; returns whether it could."""
        if not self._before:
            _forget(self.folder)
            return True
        if not self._is_as_before():
            return False
        self._record = self._before
        files.write_json(files.join(self.folder, RESULT), self._before["counts"])
        self._write()
        return True

    def _is_as_before(self) -> bool:
        sealed = seal.of_record(self._before, self.folder)
        if self._before.get("status") != DONE or "counts" not in self._before or (sealed is None and self._names):
            return False
        sealed = sealed or {}
        try:
            seal.require_whole(self.folder, sealed, self._before["job"])
            for name in self._names & sealed.keys():  # what this run may have written
                seal.require_content(files.join(self.folder, name), sealed[name], self._before["job"])
        except UserError:
            return False
        return True


@contextlib.contextmanager
def opened(
    folder: str, job: str, config: Any, inputs: Mapping[str, str | None], embedding: dict[str, Any] | None = None
) -> Iterator[Output]:
    """Opens `folder` for writing by `job`, creating it. Check all input first: nothing is written before this.

    Raises UserError where it cannot be written, where another process writes it, where it belongs to another job, or
    where it or an input is on one machine's disk and the job on a cluster of several.
    A UserError that comes only now, out of a worker, say, leaves the folder as it was: no trace of a new one. What else
    ends the job is told by the status in run.json.
    """
    _require_shared(folder, inputs)
    before = record_of(folder)
    if before and before["job"] != job:
        raise UserError(f"{folder!r} holds the output of {before['job']}.py; choose another --out for {job}.py")
    with contextlib.ExitStack() as stack:
        files.make_folder(folder)
        stack.enter_context(_lock(folder) if files.is_local(folder) else lease.held(folder, _holder()))
        record = {
            "job": job,
            "format_version": FORMAT_VERSION,
            "status": RUNNING,
            "started": _now(),
            "embedding": embedding,
            "inputs": dict(inputs),
            "configuration": dataclasses.asdict(config),
            "versions": _versions(),
        }
        out = Output(folder, record)
        try:
            yield out
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # the last is how Ray Train answers Ctrl-C
            out.ended(error)
            raise


def _require_shared(folder: str, inputs: Mapping[str, str | None]) -> None:
    if "RAY_ADDRESS" not in os.environ:
        return  # a job's own Ray is on this machine
    from dim.app import cluster  # noqa: PLC0415  (the jobs that need no Ray do without it elsewhere)

    with cluster.connected():
        cluster.require_shared([folder], written=True)
        cluster.require_shared(uri for uri in inputs.values() if uri and Path(uri).exists())


def _forget(folder: str) -> None:
    files.delete(files.join(folder, RECORD))
    if files.is_local(folder):
        files.delete(files.join(folder, LOCK))
        with contextlib.suppress(OSError):  # it holds something else
            Path(files.locate(folder)[1]).rmdir()
