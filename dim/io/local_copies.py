"""Gives local paths for files on any storage, because some libraries open only local paths.

`path_to_read` and `path_to_write` give the path of a local file itself. For a file in an object store, they make a
local copy. `sweep` deletes the half-written local files that killed writers left.
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
from dim.io.storage import retried

_PIECE_BYTES = 2**26  # bytes per request to an object store; Arrow's default of 1 MB takes many requests


@contextlib.contextmanager
def path_to_read(uri: str) -> Iterator[str]:
    """Yields the path of a local file with the content of the file at `uri`."""
    filesystem, path = files.locate(uri)
    if isinstance(filesystem, pafs.LocalFileSystem):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = f"{folder}/file"
        retried(pafs.copy_files)(path, copy, filesystem, pafs.LocalFileSystem(), chunk_size=_PIECE_BYTES)
        yield copy


@contextlib.contextmanager
def path_to_write(uri: str) -> Iterator[str]:
    """Yields a local path to write to. When the block ends without an error, the file appears at `uri`, complete.

    Raises JobFailed if the file can't be written, as on a full disk.
    """
    filesystem, path = files.locate(uri)
    with files.writing(uri):
        if isinstance(filesystem, pafs.LocalFileSystem):
            with files.beside(path) as new:
                yield str(new)
        else:
            with tempfile.TemporaryDirectory() as folder:
                yield f"{folder}/file"
                _upload(f"{folder}/file", uri)


@retried
def _upload(source: str, uri: str) -> None:
    filesystem, path = files.locate(uri)
    storage.require_writable(uri)
    pafs.copy_files(source, path, pafs.LocalFileSystem(), filesystem)


_HALF_WRITTEN = re.compile(r"(?P<name>.+)\.(?P<pid>[0-9]{1,9})\.tmp", re.DOTALL)
_YOUNG = 3600.0  # seconds; the writer of an older file is taken for dead, even if a process has its id


def sweep(folder: str, of: str | None = None) -> None:
    """Deletes dead writers' files `NAME.PID.tmp` from a local `folder`: all, or only those whose NAME is `of`.

    A file stays if it changed within the last hour and a process of this machine has the id PID. Links stay, too.
    """
    path = files.locate(folder)[1]
    if not files.is_local(folder) or not Path(path).is_dir():
        return
    with os.scandir(path) as entries:
        for entry in entries:
            half = _HALF_WRITTEN.fullmatch(entry.name)
            if half and of in (None, half["name"]) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):  # the file was renamed just now, or is another user's
                    young = time.time() - entry.stat(follow_symlinks=False).st_mtime < _YOUNG
                    if not (young and _is_alive(int(half["pid"]))):
                        Path(entry).unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process belongs to another user
        pass
    return True
