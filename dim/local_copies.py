"""Large files, stored anywhere, as paths on this machine's disks, for libraries that take nothing else."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs

from dim import fence, files
from dim.storage import patient

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
    fence.require_open(uri)
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
