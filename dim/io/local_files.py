"""Large files, stored anywhere, as paths on this machine's disks, for libraries that take nothing else.

What writers that were killed left half-written: files beside their final names (`dim.io.files`).
"""

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs

from dim.io import files, storage
from dim.io.storage import patient

# What is copied at once. From an object store each piece is a request; Arrow's own are of 1 MB.
_PIECE_BYTES = 2**26


@contextlib.contextmanager
def written(uri: str) -> Iterator[str]:
    """A path to write a file to; once the block is done, it stands at `uri`, whole.

    Raises JobFailed where it can't be written, as on a full disk.
    """
    filesystem, path = files.locate(uri)
    with files.writing(uri):
        if isinstance(filesystem, pafs.LocalFileSystem):
            beside = Path(f"{path}.{os.getpid()}.tmp")
            try:
                beside.unlink(missing_ok=True)
                yield str(beside)
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)
        else:
            with tempfile.TemporaryDirectory() as folder:
                yield f"{folder}/file"
                _upload(f"{folder}/file", uri)


@patient
def _upload(source: str, uri: str) -> None:
    filesystem, path = files.locate(uri)
    storage.require_open(uri)
    pafs.copy_files(source, path, pafs.LocalFileSystem(), filesystem)


@contextlib.contextmanager
def read(uri: str) -> Iterator[str]:
    """A path to read the file at `uri` from."""
    filesystem, path = files.locate(uri)
    if isinstance(filesystem, pafs.LocalFileSystem):
        yield path
    else:
        with tempfile.TemporaryDirectory() as folder:
            patient(pafs.copy_files)(
                path, f"{folder}/file", filesystem, pafs.LocalFileSystem(), chunk_size=_PIECE_BYTES
            )
            yield f"{folder}/file"


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
