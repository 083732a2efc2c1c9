"""The connection of a job to Ray: to a Ray that runs, or to a local one that starts and ends with the job."""

import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import ray
from ray._private.node import Node
from ray.job_config import JobConfig

from dim.app import environment, progress
from dim.errors import JobFailed, UserError
from dim.io import processes, scratch

# A try to start a local Ray fails if a process of it is not up after 30 s, a limit that Ray 2.60 has no setting for.
TRIES = 3

log = logging.getLogger(__name__)


class _JobConfig(JobConfig):  # type: ignore[misc]
    """Keeps Ray from putting the driver's working directory first on the import path of the workers.

    The code of a submitted job is in its working directory, where workers find it by their own PYTHONPATH.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True  # Ray 2.60 has no public setting for this


@contextlib.contextmanager
def opened(address: str, verbose: bool) -> Iterator[None]:
    """Connects to the Ray at `address` within the block or, if that is "local", starts one.

    With `verbose`, Ray's own messages are shown.

    Raises UserError if there is no Ray at RAY_ADDRESS, and JobFailed if Ray did not start.
    """
    environment.require_usable()
    handler = signal.getsignal(signal.SIGTERM)
    _require_answer(address)
    with contextlib.ExitStack() as stack:
        own: dict[str, Any] = {}
        if address == "local":
            own = {"include_dashboard": False, "_temp_dir": stack.enter_context(_own_folder())}
        stack.callback(ray.shutdown)
        with progress.step("starting Ray" if address == "local" else f"connecting to Ray at {address}"):
            _start(address, verbose, own)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's handler would end the job with a meaningless status
        yield


def _start(address: str, verbose: bool, own: dict[str, Any]) -> None:
    for left in reversed(range(TRIES)):
        try:
            ray.init(
                address=address,
                log_to_driver=verbose,
                job_config=_JobConfig(),
                logging_level=logging.INFO if verbose else logging.CRITICAL,
                **own,
            )
            return
        except Exception as error:  # Ray raises many types of error here
            if not (left and address == "local" and _is_late(error)):
                raise _not_started(address, error) from error
            log.warning("Ray was not up in time, as the machine is busy; starting it again")
            _end_processes(error)


def _is_late(error: Exception) -> bool:
    return "timed out" in str(error).lower()


def _end_processes(error: Exception) -> None:
    """Ends the processes of a Ray whose start raised `error`. `ray.init` leaves them running, and keeps no handle."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(node := frame.f_locals.get("self"), Node):
            node.kill_all_processes(check_alive=False)


def _not_started(address: str, error: Exception) -> UserError | JobFailed:
    reason = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, ConnectionError) and address != "local":
        return UserError(f"no Ray at RAY_ADDRESS={address!r} ({reason}); start it, or unset RAY_ADDRESS")
    if _is_late(error):
        reason += "; if the machine is busy, run the same command again later"
    return JobFailed(f"Ray did not start: {reason}")


@contextlib.contextmanager
def _own_folder() -> Iterator[str]:
    """Yields a folder for a local Ray's logs and sockets. Within the block, TMPDIR is another temporary folder.

    At the end, both folders are deleted with everything that Ray's processes left there.
    """
    with (
        # Not in TMPDIR: the paths of sockets must be short.
        scratch.temporary_folder(os.environ.get("RAY_TMPDIR", "/tmp")) as own,
        scratch.temporary_folder(tempfile.gettempdir()) as temporary,
    ):
        changed = {"DIM_SCRATCH": str(scratch.default_place()), "TMPDIR": temporary} | processes.import_path()
        before = {name: os.environ[name] for name in changed if name in os.environ}
        os.environ |= changed  # Ray's processes inherit these variables
        try:
            yield own
        finally:
            for name in changed:
                os.environ.pop(name)
            os.environ |= before


def _require_answer(address: str) -> None:
    """Raises UserError if nothing listens at `address`. Ray itself would wait for 15 minutes and ignore Ctrl-C."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"no Ray at RAY_ADDRESS={address!r} ({error}); start it, or unset RAY_ADDRESS") from error
