"""A limit on what the folders in one place take together, which many processes of a machine keep.

They count the bytes in a file, under its lock. Whoever finds no room deletes the folder used longest ago, but none
that a process uses: a lock on it says so. The kernel gives back the locks of a process that dies.

Activations of the layers that training leaves as they are, kept on the node's scratch disk.

With everything up to `block4_pool` frozen, its activations of a photo never change: they are computed once, and the
mining pass and every training step start from them. One Arrow tensor (float16, memory-mapped when read) a photo, in a
folder named by the fingerprint of trunk, preprocessing and input size; written beside and renamed, so that processes of
one node share the folder, and a death leaves nothing half-written. Not `.npy`: NumPy parses its header as Python,
which CPython 3.11 does not survive in several threads ("AST constructor recursion depth mismatch").
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from dim.io import files, local_files, scratch

COUNT = "bytes"  # the file that holds how many are taken


class Quota:
    """At most `limit` bytes for all folders in `place`; `used`, one of them, is made, and stays while this object
    lives.
    """

    def __init__(self, place: Path, used: str, limit: int) -> None:
        self._place, self._limit = place, limit
        with self._taken() as taken:
            (place / used).mkdir(exist_ok=True)
            os.utime(place / used)
            lock = os.open(place / used, os.O_RDONLY)
            weakref.finalize(self, os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_SH)
            # What dead processes meant to take, and what people deleted, is counted anew.
            taken.bytes = sum(map(_size, self._folders()))
            self._make_room(taken, 0)

    def take(self, size: int) -> bool:
        """Counts `size` more bytes as taken if there is room, and returns whether there was."""
        with self._taken() as taken:
            self._make_room(taken, size)
            if taken.bytes + size > self._limit:
                return False
            taken.bytes += size
            return True

    def give_back(self, size: int) -> None:
        """Counts `size` bytes that were taken as free."""
        with self._taken() as taken:
            taken.bytes -= size

    def _make_room(self, taken: "_Taken", size: int) -> None:
        if taken.bytes + size <= self._limit:
            return
        for folder in sorted(self._folders(), key=lambda folder: folder.stat().st_mtime):
            if taken.bytes + size > self._limit and _unused(folder):
                taken.bytes -= _size(folder)
                shutil.rmtree(folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        return [path for path in self._place.iterdir() if path.is_dir()]

    @contextlib.contextmanager
    def _taken(self) -> Iterator["_Taken"]:
        self._place.mkdir(parents=True, exist_ok=True)  # a sweep of temporary files may take it while a run goes on
        file = os.open(self._place / COUNT, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            before = os.read(file, 32)
            taken = _Taken(int(before) if before.strip().isdigit() else 0)
            yield taken
            os.pwrite(file, b"%-32d" % max(0, taken.bytes), 0)  # of one length: a death tears nothing
        finally:
            os.close(file)


class _Taken:
    """The bytes that are taken."""

    def __init__(self, count: int) -> None:
        self.bytes = count


def _unused(folder: Path) -> bool:
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*.*"):
        with contextlib.suppress(OSError):  # it was renamed just now
            total += file.stat().st_size
    return total


class FeatureCache:
    """The cache of one trunk. What would go beyond `limit` bytes, over all trunks of the node, is not kept.

    Raises JobFailed where nothing can be written to its folder. A disk that is full later costs time, not the run.
    """

    def __init__(self, folder: str | None, fingerprint: str, limit: int) -> None:
        self._full = False
        trunks, name = (
            scratch.persistent_folder(folder) / "trunk",
            hashlib.sha256(fingerprint.encode()).hexdigest()[:32],
        )
        self._folder = trunks / name
        local_files.sweep(str(self._folder))
        with files.writing(str(self._folder)):
            self._quota = Quota(trunks, name, limit)

    def is_full(self) -> bool:
        """Whether there was no room for something."""
        return self._full

    def holds(self, key: str) -> bool:
        """Whether something is kept under `key`."""
        return self._path(key).exists()

    def get(self, key: str) -> np.ndarray | None:
        """The activations kept under `key`, or None."""
        try:
            with pa.memory_map(str(self._path(key))) as file:
                kept: np.ndarray = pa.ipc.read_tensor(file).to_numpy()
            return kept
        except (OSError, ValueError):
            return None  # never kept, or cut short by a power failure

    def put(self, key: str, activations: np.ndarray) -> None:
        """Keeps `activations` under `key`, if there is room."""
        tensor = pa.Tensor.from_numpy(np.ascontiguousarray(activations))
        try:
            if not self._quota.take(size := pa.ipc.get_tensor_size(tensor)):
                self._full = True
                return
            try:
                self._write(key, tensor)
            except OSError:
                self._quota.give_back(size)
                raise
        except OSError:  # some file systems have no room even to count that there is none
            self._full = True

    def _write(self, key: str, tensor: pa.Tensor) -> None:
        path, beside = self._path(key), self._folder / f"{key}.{os.getpid()}.tmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with pa.OSFile(str(beside), "wb") as file:
                pa.ipc.write_tensor(tensor, file)
            if path.exists():  # cut short, or from another worker
                self._quota.give_back(path.stat().st_size)
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.arrow"
