"""Decoding that cannot hang or kill the job, or exhaust its memory.

`decode_here` ends the process that calls it if a photo hangs. So it is for processes that are restarted, for example by
Ray. `decode` and `check_header` use worker processes with a timeout and a memory limit. If a photo kills its worker,
they raise DecodeError.

A malicious photo may take over the worker that decodes it. So workers answer only with JSON and raw pixels, which
cannot run code in the job.
"""

import atexit
import contextlib
import dataclasses
import faulthandler
import io
import json
import os
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from dim.data.config import Resize
from dim.data.decode import Box, Decoded, prepared
from dim.data.decode import check_header as check_header_here
from dim.data.footprint import turn
from dim.data.limits import LIMITS, DecodeError, Limits
from dim.io import processes

TRIES = 3  # a photo that kills this many workers counts as undecodable
SECONDS = 60.0  # timeout for one photo; the largest photo that the default limits allow takes a tenth of this time
BESIDE = 2**29  # bytes that a worker may take in addition to its photo; Python, NumPy and Pillow take a fifth of them


def decode_here(content: bytes, *arguments: Any, limits: Limits = LIMITS, seconds: float = 0, **named: Any) -> Decoded:
    """Decodes as `dim.data.decode.decode` does, after waiting for this photo's `dim.data.footprint.turn`.

    Ends this process if decoding takes longer than `seconds` (0: SECONDS). The wait for the turn does not count.
    """
    with _timeout(seconds or SECONDS):
        photo = prepared(content, *arguments, limits=limits, **named)
    with turn(photo.memory, limits), _timeout(seconds or SECONDS):
        return photo.decode()


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Ends the process if the block takes longer than `seconds`, even in native code. Writes a traceback to stderr."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def decode(
    content: bytes, size: int, resize: Resize, box: Box | None = None, *, scaled: bool = False, limits: Limits = LIMITS
) -> Decoded:
    """Decodes as `dim.data.decode.decode` does, but in a worker process, which is kept for the next photo.

    Is thread-safe. Raises DecodeError also if TRIES workers died on the photo, or if a worker took longer than SECONDS.
    """
    about, pixels = _answer(content, limits, size=size, resize=resize, box=box, scaled=scaled)
    found = np.frombuffer(pixels, np.uint8).reshape(about["shape"])
    return Decoded(found, about["width"], about["height"], about["several"])


def check_header(content: bytes, limits: Limits = LIMITS) -> None:
    """Does in a worker what `dim.data.decode.check_header` does. `content` is the file or the beginning of it."""
    _answer(content, limits)


def _answer(content: bytes, limits: Limits, **call: Any) -> tuple[dict[str, Any], bytes]:
    """Lets a worker `decode` with arguments `call`, or `check_header` if `call` is empty. Returns JSON and pixels."""
    question = {"call": call, "limits": dataclasses.asdict(limits), "seconds": SECONDS, "length": len(content)}
    with _cores:
        for attempt in range(TRIES):
            process = _kept() if attempt == 0 else _Process()  # a kept worker may have died since
            answer = process.ask(json.dumps(question).encode() + b"\n", content)
            if answer is not None:
                _idle.append(process)
                break
            status, stderr = process.end()
            if status > 0 and "Timeout" in stderr:
                raise DecodeError(f"decoding took longer than {SECONDS:.0f} s")
            if status >= 0:
                raise RuntimeError(stderr)
        else:
            killer = signal.Signals(-status).name
            raise DecodeError(f"decoding killed the process ({killer}, {TRIES} of {TRIES} attempts)")
    if "error" in answer[0]:
        raise DecodeError(answer[0]["error"])
    return answer


class _Process:
    """A worker process, which decodes one photo after the other."""

    def __init__(self) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (a full pipe that nobody reads would block the worker)
        self._process = processes.start(__name__, self._stderr)
        assert self._process.stdin and self._process.stdout
        self._to, self._back = self._process.stdin, self._process.stdout

    def ask(self, *question: bytes) -> tuple[dict[str, Any], bytes] | None:
        """Sends the parts of a question. Returns the answer (JSON and pixels), or None if the worker dies."""
        try:
            for part in question:
                self._to.write(part)
            self._to.flush()
            about = json.loads(self._back.readline())
            pixels = self._back.read(about["length"])
        except (BrokenPipeError, ValueError):  # the worker died before the whole line was written
            return None
        return (about, pixels) if len(pixels) == about["length"] else None

    def end(self) -> tuple[int, str]:
        """Ends the worker; returns its exit status and what it wrote to stderr."""
        with self._back, self._stderr:
            with contextlib.suppress(BrokenPipeError):
                self._to.close()
            status = self._process.wait()
            self._stderr.seek(0)
            return status, self._stderr.read().decode(errors="replace")


_cores = threading.BoundedSemaphore(os.cpu_count() or 1)  # one worker per core; more would not be faster
_idle: list[_Process] = []


def _kept() -> _Process:
    try:
        return _idle.pop()
    except IndexError:
        return _Process()


@atexit.register
def end() -> None:
    """Ends the idle workers."""
    while _idle:
        _idle.pop().end()


def _serve() -> None:
    """Runs the worker's loop: answers questions from stdin until stdin is closed."""
    while line := sys.stdin.buffer.readline():
        question = json.loads(line)
        content = sys.stdin.buffer.read(question["length"])
        limits = Limits(**question["limits"])
        memory = limits.memory + BESIDE
        resource.setrlimit(resource.RLIMIT_AS, (memory, resource.RLIM_INFINITY))
        try:
            about, pixels = _work(content, limits, question["seconds"], question["call"])
        except DecodeError as error:
            out_of_memory = isinstance(error.__cause__, MemoryError)
            reason = f"decoding takes more than {memory / 2**30:.1f} GiB of memory" if out_of_memory else str(error)
            about, pixels = {"error": reason}, b""
        sys.stdout.buffer.write(json.dumps(about | {"length": len(pixels)}).encode() + b"\n" + pixels)
        sys.stdout.buffer.flush()


def _work(content: bytes, limits: Limits, seconds: float, call: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    if not call:
        with _timeout(seconds):
            check_header_here(io.BytesIO(content), limits)
        return {}, b""
    found = decode_here(content, limits=limits, seconds=seconds, **call)
    about = {"shape": found.pixels.shape, "width": found.width, "height": found.height, "several": found.several}
    return about, found.pixels.tobytes()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _serve()
