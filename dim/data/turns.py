"""Who may decode now: photos that take much memory wait for their turn, so that a machine's memory holds all of them.

The turns are locks on files, so they count for all threads and processes of all jobs on a machine, and the kernel gives
back the turn of a process that dies.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from dim import scratch

SMALL = 2**28  # bytes; a photo that takes no more waits for nobody
SECONDS = 0.02  # between two looks
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


@contextlib.contextmanager
def turn(needed: int, most: int) -> Iterator[None]:
    """Waits for a turn to decode a photo that takes `needed` bytes, and holds it within the block.

    At one time, as many of more than SMALL are as half of the memory holds if each takes `most`, and one a core; at
    least one.
    """
    if needed <= SMALL:
        yield
        return
    lock = _taken(max(1, min(memory() // 2 // most, os.cpu_count() or 1)))
    try:
        yield
    finally:
        os.close(lock)


def memory() -> int:
    """The bytes of memory that this machine, or the container on it, has."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in map(Path, _LIMITS):
        with contextlib.suppress(OSError, ValueError):  # there is none, or it says "max"
            found = min(found, int(path.read_text()))
    return found


def _taken(turns: int) -> int:
    folder = scratch.kept() / "turns"
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for number in range(turns):
            lock = os.open(folder / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
            else:
                return lock
        time.sleep(SECONDS)
