"""What writers that were killed left half-written: files beside their final names (`dim.files`)."""

import contextlib
import os
import re
import time
from pathlib import Path

from dim import files

_HALF_WRITTEN = re.compile(r"(?P<name>.+)\.(?P<pid>[0-9]{1,9})\.tmp", re.DOTALL)
_YOUNG = 3600.0  # seconds, after which a number that is alive is taken for another process's


def sweep(folder: str, of: str | None = None) -> None:
    """Deletes what writers that died left half-written in the local `folder`, `NAME.PID.tmp`, or only that `of` a NAME.

    What a living process of this machine has written to within the last hour stays, and so does a link.
    """
    path = files.locate(folder)[1]
    if not files.is_local(folder) or not Path(path).is_dir():
        return
    with os.scandir(path) as entries:
        for entry in entries:
            half = _HALF_WRITTEN.fullmatch(entry.name)
            if half and of in (None, half["name"]) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):  # it was finished just now, or is another's
                    young = time.time() - entry.stat(follow_symlinks=False).st_mtime < _YOUNG
                    if not (young and _lives(int(half["pid"]))):
                        Path(entry).unlink()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True
