"""Temporary folders: what a job needs while it runs is gone with it, and what dead jobs left is swept away.

They may lie where every user can write. So what is not this user's own is never used, followed or deleted, nor is
what dim didn't make.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dim.errors import UserError

_PREFIX = "dim-job-"
_MARK = ".dim-scratch"  # in a folder that dim made to be swept
_SECONDS = 60.0  # in which a new folder is surely locked


def place() -> Path:
    """The folder in which `kept` lies where no other is named: $DIM_SCRATCH, else the temporary folder."""
    return Path(os.environ.get("DIM_SCRATCH") or tempfile.gettempdir()).absolute()


def kept(folder: str | None = None) -> Path:
    """The folder of this user's own, in `folder` or `place()`, for what later jobs on this machine may use again.

    It is made where there is none. Raises UserError where that cannot be, or where another could write there.
    """
    path = _kept_in(folder)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the scratch folder {str(path)!r} ({error.strerror}); name another place by {_named(folder)}"
        ) from error
    require_own(folder)
    path.chmod(0o700)
    return path


def require_own(folder: str | None = None) -> None:
    """Raises UserError where what `kept` would return is there, and a link or another user's."""
    path = _kept_in(folder)
    if not os.path.lexists(path):
        return
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        fault = "is a link, or no folder"
    elif found.st_uid != os.getuid():
        fault = f"belongs to user {found.st_uid}"
    else:
        return
    raise UserError(
        f"the scratch folder {str(path)!r} {fault}, so another user may have made it; delete it, or name another place "
        f"by {_named(folder)}"
    )


def _named(folder: str | None) -> str:
    """By what a user names the place."""
    return "--scratch" if folder else "DIM_SCRATCH"


def _kept_in(folder: str | None) -> Path:
    return (Path(folder) if folder else place()) / f"dim-{os.getuid()}"


@contextlib.contextmanager
def folder(parent: str) -> Iterator[str]:
    """A new folder in `parent`, deleted at the end. One that a killed job left is deleted when the next begins."""
    _sweep(parent)
    path = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Path(path, _MARK).touch()
        yield path
    finally:
        os.close(lock)
        shutil.rmtree(path, ignore_errors=True)


def _sweep(parent: str) -> None:
    for left in Path(parent).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # it is in use, a link, not dim's, or gone
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.stat(_MARK, dir_fd=lock)
                found = os.fstat(lock)
                if found.st_uid == os.getuid() and found.st_mtime < time.time() - _SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)
