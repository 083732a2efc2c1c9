"""Decoding that can't hang or kill the job, nor take more memory than it may: watched in this process, or in another.

What is decoded may be made to take over the process that decodes it. So what comes back from there is JSON and bare
pixels: nothing that could do anything here.
"""

import atexit
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
from typing import IO, Any

import numpy as np

from dim.data.decode import Box, Decoded, Resize, prepared
from dim.data.decode import check_header as check_header_here
from dim.data.footprint import turn
from dim.data.limits import LIMITS, DecodeError, Limits
from dim.io import processes

TRIES = 3
SECONDS = 60.0  # a photo of the largest size allowed takes a tenth
# Address space of a process that decodes, beside what its photo takes: the interpreter's, NumPy's and Pillow's is 0.1.
BESIDE = 2**29


def watched(content: bytes, *arguments: Any, limits: Limits = LIMITS, seconds: float = 0, **named: Any) -> Decoded:
    """As `dim.data.decode.decode`, in its turn; ends this process where that takes longer than `seconds` (SECONDS),
    whatever holds it up. The wait for its turn doesn't count.
    """
    with _Watch(seconds or SECONDS):
        photo = prepared(content, *arguments, limits=limits, **named)
    with turn(photo.memory, limits.memory), _Watch(seconds or SECONDS):
        return photo.decode()


class _Watch:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=2)

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()


def decode(
    content: bytes, size: int, resize: Resize, box: Box | None = None, *, scaled: bool = False, limits: Limits = LIMITS
) -> Decoded:
    """As `dim.data.decode.decode`, in a process of its own, which is kept for the next photo; threads may call it.

    Raises DecodeError also where each of TRIES processes died, or one took longer than SECONDS.
    """
    about, pixels = _answer(content, limits, size=size, resize=resize, box=box, scaled=scaled)
    found = np.frombuffer(pixels, np.uint8).reshape(about["shape"])
    return Decoded(found, about["width"], about["height"], about["several"])


def check_header(content: bytes, limits: Limits = LIMITS) -> None:
    """As `dim.data.decode.check_header`, for a file that begins with `content`, in a process of its own."""
    _answer(content, limits)


def _answer(content: bytes, limits: Limits, **call: Any) -> tuple[dict[str, Any], bytes]:
    how = {"call": call, "limits": dataclasses.asdict(limits), "seconds": SECONDS, "length": len(content)}
    with _cores:
        for attempt in range(TRIES):
            process = _kept() if attempt == 0 else _Process()  # one that was kept may have died since
            answer = process.asked(json.dumps(how).encode() + b"\n", content)
            if answer is not None:
                _idle.append(process)
                break
            status, said = process.end()
            if status > 0 and "Timeout" in said:
                raise DecodeError(f"its decoding took longer than {SECONDS:.0f} s")
            if status >= 0:
                raise RuntimeError(said)
        else:
            killer = signal.Signals(-status).name
            raise DecodeError(f"its decoding killed the process ({killer}, {TRIES} times of {TRIES})")
    if "error" in answer[0]:
        raise DecodeError(answer[0]["error"])
    return answer


class _Process:
    """A process that decodes one photo after the other."""

    def __init__(self) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (a pipe that nobody reads would hold it up)
        self._process = processes.start(__name__, self._said)

    def asked(self, *question: bytes) -> tuple[dict[str, Any], bytes] | None:
        """Its answer, JSON and pixels; None where it dies over the question."""
        to, back = self._pipes()
        try:
            for part in question:
                to.write(part)
            to.flush()
            about = json.loads(back.readline())
            pixels = back.read(about["length"])
        except (BrokenPipeError, ValueError):  # no line, or half of one
            return None
        return (about, pixels) if len(pixels) == about["length"] else None

    def end(self) -> tuple[int, str]:
        """Ends it, and returns its exit status and what it wrote to stderr."""
        to, back = self._pipes()
        with back, self._said:
            try:
                to.close()
            except BrokenPipeError:
                pass
            status = self._process.wait()
            self._said.seek(0)
            return status, self._said.read().decode(errors="replace")

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin and self._process.stdout
        return self._process.stdin, self._process.stdout


_cores = threading.BoundedSemaphore(os.cpu_count() or 1)  # more processes at one time would gain nothing
_idle: list[_Process] = []


def _kept() -> _Process:
    try:
        return _idle.pop()
    except IndexError:
        return _Process()


@atexit.register
def end() -> None:
    """Ends the processes that wait for a photo."""
    while _idle:
        _idle.pop().end()


def _serve() -> None:
    while line := sys.stdin.buffer.readline():
        how = json.loads(line)
        content = sys.stdin.buffer.read(how["length"])
        limits = Limits(**how["limits"])
        memory = limits.memory + BESIDE
        resource.setrlimit(resource.RLIMIT_AS, (memory, resource.RLIM_INFINITY))
        try:
            about, pixels = _found(content, limits, how["seconds"], how["call"])
        except DecodeError as error:
            short = isinstance(error.__cause__, MemoryError)
            reason = f"its decoding takes more than {memory / 2**30:.1f} GiB of memory" if short else str(error)
            about, pixels = {"error": reason}, b""
        sys.stdout.buffer.write(json.dumps(about | {"length": len(pixels)}).encode() + b"\n" + pixels)
        sys.stdout.buffer.flush()


def _found(content: bytes, limits: Limits, seconds: float, call: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    if not call:
        with _Watch(seconds):
            check_header_here(io.BytesIO(content), limits)
        return {}, b""
    found = watched(content, limits=limits, seconds=seconds, **call)
    about = {"shape": found.pixels.shape, "width": found.width, "height": found.height, "several": found.several}
    return about, found.pixels.tobytes()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _serve()
