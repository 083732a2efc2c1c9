"""The feature cache keeps the activations of the frozen layers (the trunk) on each machine's scratch disk.

The trunk maps a photo to the same activations in every epoch. So they are computed once, and mining and all training
steps start from them. A folder belongs to one trunk, preprocessing and input size. It has one Arrow tensor
(memory-mapped when read) per photo or augmented view. A file is written under another name and then renamed. So
processes can share a folder, and none reads a partial file of a dead process. (The files are not `.npy`: NumPy parses
the header as Python, which in CPython 3.11 fails in several threads, "AST constructor recursion depth mismatch".)

`Quota` limits the disk space of all folders together. A file holds the number of bytes taken, and a process locks this
file to change the number. If there is no room, the least recently used folders are deleted. A process protects the
folder that it uses by a lock, which the kernel releases when the process dies.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dim.io import files, local_copies, scratch

COUNT = "bytes"  # the file that holds the number of bytes taken


class FeatureCache:
    """The cache of the trunk with the `fingerprint`, in the scratch folder `folder` (None: the default folder).

    All trunks of the machine together may take `limit` bytes. Features that find no room are not cached.
    Raises JobFailed if nothing can be written. If the disk fills up later, the run continues, but more slowly.
    """

    def __init__(self, folder: str | None, fingerprint: str, limit: int) -> None:
        self._full = False
        trunks = scratch.persistent_folder(folder) / "trunk"
        name = hashlib.sha256(fingerprint.encode()).hexdigest()[:32]
        self._folder = trunks / name
        local_copies.sweep(str(self._folder))
        with files.writing(str(self._folder)):
            self._quota = Quota(trunks, name, limit)

    def is_full(self) -> bool:
        """Whether some activations found no room."""
        return self._full

    def holds(self, key: str) -> bool:
        """Whether there are activations under `key`."""
        return self._path(key).exists()

    def get(self, key: str) -> np.ndarray | None:
        """The activations under `key`, memory-mapped; None if there are none."""
        try:
            with pa.memory_map(str(self._path(key))) as file:
                found: np.ndarray = pa.ipc.read_tensor(file).to_numpy()
            return found
        except (OSError, ValueError):
            return None  # not cached, or cut short by a power failure

    def put(self, key: str, activations: np.ndarray) -> None:
        """Caches `activations` under `key` if there is room."""
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
        except OSError:  # the disk is full; on some file systems, not even the count can be written
            self._full = True

    def _write(self, key: str, tensor: pa.Tensor) -> None:
        path, beside = self._path(key), self._folder / f"{key}.{os.getpid()}.tmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with pa.OSFile(str(beside), "wb") as file:
                pa.ipc.write_tensor(tensor, file)
            if path.exists():  # another worker wrote it, or a power failure cut it short
                self._quota.give_back(path.stat().st_size)
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.arrow"


class Quota:
    """Limits all folders in `place` to `limit` bytes in total. Makes the folder `used`; this object protects it."""

    def __init__(self, place: Path, used: str, limit: int) -> None:
        self._place, self._limit = place, limit
        with self._taken() as taken:
            (place / used).mkdir(exist_ok=True)
            os.utime(place / used)
            lock = os.open(place / used, os.O_RDONLY)
            weakref.finalize(self, os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_SH)
            # Count again: a process may have died between counting and writing a file, or users may have deleted some.
            taken.bytes = sum(map(_size, self._folders()))
            self._make_room(taken, 0)

    def take(self, size: int) -> bool:
        """Adds `size` bytes to the bytes taken if there is room. Returns whether there was room."""
        with self._taken() as taken:
            self._make_room(taken, size)
            if taken.bytes + size > self._limit:
                return False
            taken.bytes += size
            return True

    def give_back(self, size: int) -> None:
        """Subtracts `size` bytes from the bytes taken."""
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
        self._place.mkdir(parents=True, exist_ok=True)  # cleaners of temporary folders may delete it during a run
        file = os.open(self._place / COUNT, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            before = os.read(file, 32)
            taken = _Taken(int(before) if before.strip().isdigit() else 0)
            yield taken
            os.pwrite(file, b"%-32d" % max(0, taken.bytes), 0)  # the length is fixed, so one write replaces all digits
        finally:
            os.close(file)


@dataclass
class _Taken:
    bytes: int  # bytes taken in all folders; `Quota` changes the number under the lock


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
        with contextlib.suppress(OSError):  # another process has just renamed it
            total += file.stat().st_size
    return total
