"""Makes scratch folders on local disks: temporary folders that end with the job, and a persistent folder per user.

Other users may be able to write where these folders are made. So dim uses no folder that is a link or belongs to
another user. Of the temporary folders of killed jobs, dim deletes only this user's, and only those with dim's mark.
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
_MARK = ".dim-scratch"  # file that marks a temporary folder, which dim may delete
_MIN_AGE = 60.0  # seconds; the job that made a younger folder may not have locked it yet


def default_place() -> Path:
    """The default parent of the persistent folder: $DIM_SCRATCH, else the system's folder for temporary files."""
    return Path(os.environ.get("DIM_SCRATCH") or tempfile.gettempdir()).absolute()


def persistent_folder(folder: str | None = None) -> Path:
    """Returns this user's own folder in `folder` or `default_place()`. Later jobs on this machine reuse its files.

    Creates the folder if necessary. Raises UserError if that fails, or if `require_own` refuses the folder.
    """
    path = _user_folder(folder)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the scratch folder {str(path)!r} ({error.strerror}); name another place by {_setting(folder)}"
        ) from error
    require_own(folder)
    path.chmod(0o700)
    return path


def require_own(folder: str | None = None) -> None:
    """Raises UserError if the persistent folder exists, but is a link or a file, or belongs to another user."""
    path = _user_folder(folder)
    if not os.path.lexists(path):
        return
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        fault = "is a link or not a folder"
    elif found.st_uid != os.getuid():
        fault = f"belongs to user {found.st_uid}"
    else:
        return
    raise UserError(
        f"the scratch folder {str(path)!r} {fault}, so another user may have made it; delete it, or name another place "
        f"by {_setting(folder)}"
    )


def _setting(folder: str | None) -> str:
    return "--scratch" if folder else "DIM_SCRATCH"


def _user_folder(folder: str | None) -> Path:
    return (Path(folder) if folder else default_place()) / f"dim-{os.getuid()}"


@contextlib.contextmanager
def temporary_folder(parent: str) -> Iterator[str]:
    """Creates a folder in `parent`, and deletes it when the block ends. First deletes the folders of killed jobs."""
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
        with contextlib.suppress(OSError):  # the folder is in use, is a link, has no mark, or is gone
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.stat(_MARK, dir_fd=lock)
                found = os.fstat(lock)
                if found.st_uid == os.getuid() and found.st_mtime < time.time() - _MIN_AGE:
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)
