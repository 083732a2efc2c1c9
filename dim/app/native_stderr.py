"""Keeps the last lines that native code writes to a job's stderr, and shows them if the job fails or dies.

FAISS, Arrow and TensorFlow may write to file descriptor 2 and then abort the whole process. So this file runs as a
second process, `python native_stderr.py PIPE JOB`. It reads the file descriptor PIPE until stdin tells how the job
ended: QUIET means that there is nothing to show, and end of file means that the job failed or died.
"""

import os
import select
import sys
from pathlib import Path

QUIET = b"q"
_BYTES, _LINES = 2**16, 20  # bytes that are kept and lines that are shown, at most


def _last(pipe: int) -> bytes:
    """Reads `pipe` until stdin becomes readable. Returns the last bytes that were written to the pipe."""
    kept, watched = b"", [0, pipe]
    while True:
        ready = select.select(watched, [], [])[0]
        if pipe in ready:
            read = os.read(pipe, _BYTES)  # a pipe holds no more
            kept = (kept + read)[-_BYTES:]
            if not read:  # no process can write to the pipe any more
                watched.remove(pipe)
        if 0 in ready:
            return kept


def _show(kept: bytes) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import logging  # noqa: PLC0415  (most jobs end well and need no import)

    from dim.app import logs  # noqa: PLC0415

    lines = [line for line in kept.decode(errors="replace").splitlines() if line.strip()]
    for line in lines[-_LINES:]:
        logs.say(logging.WARNING, f"native code: {line}")


if __name__ == "__main__":
    written = _last(int(sys.argv[1]))
    sys.argv = sys.argv[2:]  # a log record takes the name of its job from here
    if os.read(0, 1) != QUIET:
        _show(written)
