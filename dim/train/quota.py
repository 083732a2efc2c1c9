"""A limit on what the folders in one place take together, which many processes of a machine keep.

They count the bytes in a file, under its lock. Whoever finds no room deletes the folder used longest ago, but none
that a process uses: a lock on it says so. The kernel gives back the locks of a process that dies.
"""

import contextlib
import fcntl
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

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
