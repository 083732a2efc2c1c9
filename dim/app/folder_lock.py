"""One writer at a time for an output folder: a lock on local disks, a lease (`dim.io.lease`) on object stores."""

import contextlib
import datetime
import fcntl
import os
import socket
from collections.abc import Iterator
from typing import TextIO

from dim.errors import InUse, UserError
from dim.io import files, lease

LOCK = ".lock"


def held(folder: str) -> contextlib.AbstractContextManager[None]:
    """Within the block, no other process can hold `folder`. Raises InUse if another process holds it."""
    return _locked(folder) if files.is_local(folder) else lease.held(folder, _holder())


def require_free(folder: str) -> None:
    """Raises InUse if another process writes `folder`. Two processes may call this at the same time."""
    if not files.is_local(folder):
        lease.require_free(folder)
        return
    with _lock_file(files.join(folder, LOCK)) as file:
        _lock(folder, file, fcntl.LOCK_SH)


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    # If this process dies, the kernel releases the lock.
    with _lock_file(files.join(folder, LOCK)) as file:
        _lock(folder, file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(_holder())
        file.flush()
        yield


def _lock(folder: str, file: TextIO, kind: int) -> None:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise InUse(f"{folder!r} is being written by {file.read().strip()}; wait for it or stop it") from error


def _lock_file(uri: str) -> TextIO:
    try:
        # O_NOFOLLOW refuses a link, which could lead to another file.
        descriptor = os.open(files.locate(uri)[1], os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        return open(descriptor, "a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {uri!r} ({files.reason(error)}); choose another folder, or delete it") from error


def _holder() -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    user = os.environ.get("USER", f"user {os.getuid()}")
    return f"{user}@{socket.gethostname()}, process {os.getpid()}, since {now}"
