"""The output folder of a job, which has one writer at a time, and its files run.json and result.json.

A job writes within `opened`, which locks the folder. run.json says how the job was started and how it ended. While the
job runs, `progress_file` tells how far it is. When the job is done, result.json holds its result. Readers use
`verified_seal` or `finished_record` to check that the folder is finished.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dim
from dim.app import environment, folder_lock, logs, progress, progress_file
from dim.errors import JobFailed, UserError
from dim.io import files, local_copies, seal
from dim.io.seal import Seal

FORMAT_VERSION = 1
RECORD, RESULT = seal.RECORD, "result.json"
# The status in run.json. A killed job also leaves "running", but neither a lock nor a lease that is still renewed.
RUNNING, DONE, STOPPED, FAILED = "running", "done", "stopped", "failed"
REPLACED = "replaces"  # entry of a running job: files of the run before, to be deleted unless written again
_PACKAGES = ("ray", "tensorflow", "keras", "numpy", "pillow", "pyarrow", "scikit-learn", "faiss-cpu")


class Output:
    """An output folder that this process writes. `opened` creates the object."""

    def __init__(self, folder: str, record: dict[str, Any]) -> None:
        self.folder = folder
        self._record = record
        self._names: set[str] = set()
        self._before = before = record_of(folder) or {}
        self._record[REPLACED] = seal.listed_names(before.get(seal.FILES) or before.get(REPLACED) or [], folder)
        files.delete(files.join(folder, RESULT))
        local_copies.sweep(folder)
        self._write_record()

    def _write_record(self) -> None:
        files.write_json(files.join(self.folder, RECORD), self._record)

    def path(self, name: str) -> str:
        """The URI at which to write the file `name`. `finish` will seal the file."""
        self._names.add(name)
        return files.join(self.folder, name)

    @progress.step("sealing the output")
    def finish(self, result: dict[str, Any], known: Mapping[str, dict[str, Any]] | None = None) -> dict[str, Any]:
        """Seals this run's files, deletes files that only the run before wrote, and marks the job as done.

        Writes `result` into run.json and result.json, and returns it. `known` has, by name, the facts of files for the
        seal; these files are not read again.
        """
        sealed = seal.create(self.folder, self._names, known or {})
        replaced = {*self._record[REPLACED]} - sealed.keys()
        files.delete_all(files.join(self.folder, name) for name in replaced)
        files.write_json(files.join(self.folder, RESULT), result)
        done = {key: value for key, value in self._record.items() if key != REPLACED}
        done |= {"status": DONE, "finished": _now(), "counts": result} | ({seal.FILES: sealed} if sealed else {})
        files.write_json(files.join(self.folder, RECORD), done)
        self._record = done  # not earlier: if a line above fails, `record_error` must record the error
        return result

    def record_error(self, error: BaseException) -> None:
        """Records in run.json that `error` ended the job before `finish`, unless the folder can no longer be written.

        After a UserError, if possible, removes a new folder, or gives an existing folder its old record back instead.
        """
        if self._record["status"] == DONE:
            return
        with contextlib.suppress(Exception):  # a full disk or a lost lease may have ended the job
            if isinstance(error, UserError) and self._restore():
                return
            known = isinstance(error, UserError | JobFailed)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            end = {"status": FAILED, "reason": logs.message(reason)}
            if not isinstance(error, Exception):  # Ctrl-C, or `ray job stop`
                end = {"status": STOPPED, "reason": "interrupted"}
            self._record |= {"finished": _now(), **end}
            self._write_record()

    def _restore(self) -> bool:
        """Restores the state before this run, if possible. Returns whether it was possible."""
        if not self._before:
            files.delete(files.join(self.folder, RECORD))
            if files.is_local(self.folder):
                files.delete(files.join(self.folder, folder_lock.LOCK))
                with contextlib.suppress(OSError):  # the folder holds other files
                    Path(files.locate(self.folder)[1]).rmdir()
            return True
        if not self._is_as_before():
            return False
        self._record = self._before
        files.write_json(files.join(self.folder, RESULT), self._before["counts"])
        self._write_record()
        return True

    def _is_as_before(self) -> bool:
        sealed = seal.from_record(self._before, self.folder)
        if self._before.get("status") != DONE or "counts" not in self._before or (sealed is None and self._names):
            return False
        sealed = sealed or {}
        try:
            seal.require_complete(self.folder, sealed, self._before["job"])
            for name in self._names & sealed.keys():  # this run may have overwritten these files
                seal.require_content(files.join(self.folder, name), sealed[name], self._before["job"])
        except UserError:
            return False
        return True


@contextlib.contextmanager
def opened(
    folder: str, job: str, config: Any, inputs: Mapping[str, str | None], embedding: dict[str, Any] | None = None
) -> Iterator[Output]:
    """Opens `folder` for the program `job` to write, and creates it if necessary. Check all input before this call.

    If a UserError ends the block, an existing folder gets its old record back and a new folder is removed, if possible.
    Any other error is recorded in run.json.

    Args:
        folder: The output folder.
        job: The name of the program, such as "extract".
        config: The job's configuration, a dataclass.
        inputs: The files and folders that the job reads, by the names of their flags.
        embedding: The identity of the descriptors that the job writes or reads.

    Raises:
        UserError: The folder can't be written, belongs to another job, or is being written by another process. Or the
        folder or an input is on one machine's disk, but the job's cluster has or may start other machines.
    """
    _require_shared(folder, inputs)
    before = record_of(folder)
    if before and before["job"] != job:
        raise UserError(f"{folder!r} holds the output of {before['job']}.py; choose another --out for {job}.py")
    files.make_folder(folder)
    with folder_lock.held(folder):
        record = {
            "job": job,
            "format_version": FORMAT_VERSION,
            "status": RUNNING,
            "started": _now(),
            "embedding": embedding,
            "inputs": dict(inputs),
            "configuration": dataclasses.asdict(config),
            "versions": _versions(),
            "environment": environment.tensorflow_variables(),
        }
        out = Output(folder, record)
        try:
            with progress_file.kept(folder, job):
                yield out
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # Ray Train turns Ctrl-C into SystemExit
            out.record_error(error)
            raise


def _require_shared(folder: str, inputs: Mapping[str, str | None]) -> None:
    if "RAY_ADDRESS" not in os.environ:
        return  # the job starts its own Ray on this machine
    from dim.app import cluster  # noqa: PLC0415  (some jobs need no Ray, and its import takes long)

    with cluster.connected():
        cluster.require_shared([folder], written=True)
        cluster.require_shared(uri for uri in inputs.values() if uri and Path(uri).exists())


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {"dim": dim.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def record_of(folder: str) -> dict[str, Any] | None:
    """The run.json of `folder`; None if it has none. Raises UserError if it is no job's or has an unknown format."""
    uri = files.join(folder, RECORD)
    if not files.exists(uri):
        return None
    record = files.read_json(uri)
    if not isinstance(record, dict) or "job" not in record:
        raise UserError(f"{uri!r} is not the record of a dim job; name another folder")
    version = record.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UserError(
            f"{uri!r} has format version {version!r}, this dim reads {FORMAT_VERSION}; use the dim that wrote it"
        )
    return record


def finished_record(folder: str) -> dict[str, Any] | None:
    """Does what `record_of` does. Also raises UserError if the job that writes `folder` is not done."""
    if (record := record_of(folder)) and record.get("status", DONE) != DONE:
        raise UserError(f"{folder!r} was never finished; run {record['job']}.py again")
    return record


def verified_seal(folder: str) -> Seal | None:
    """The seal of `folder`; None if it has no seal.

    Raises UserError if the job that writes the folder is not done, or if a sealed file is missing or has another size.
    """
    record = finished_record(folder)
    sealed = seal.from_record(record, folder) if record else None
    if record and sealed:
        seal.require_complete(folder, sealed, record["job"])
    return sealed
