"""Temporary folders: what a job needs while it runs is gone with it, and what dead jobs left is swept away."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "dim-job-"
_SECONDS = 60.0  # in which a new folder is surely locked


def kept() -> Path:
    """The folder on this machine for what later jobs may use again: $DIM_SCRATCH, else in the temporary folder."""
    return Path(os.environ.get("DIM_SCRATCH") or f"{tempfile.gettempdir()}/dim-{os.getuid()}")


@contextlib.contextmanager
def folder(parent: str) -> Iterator[str]:
    """A new folder in `parent`, deleted at the end. One that a killed job left is deleted when the next begins."""
    _sweep(parent)
    path = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
    finally:
        os.close(lock)
        shutil.rmtree(path, ignore_errors=True)


def _sweep(parent: str) -> None:
    for left in Path(parent).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # it is in use, another user's, or gone
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if left.stat().st_mtime < time.time() - _SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)
