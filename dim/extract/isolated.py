"""Decoding that can't hang or kill the job: watched in this process, or in one of its own.

What is decoded may be made to take over the process that decodes it. So what comes back from there is JSON and bare
pixels: nothing that could do anything here.
"""

import dataclasses
import faulthandler
import json
import signal
import subprocess
import sys
from typing import Any

import numpy as np

from dim import children
from dim.data.decode import Box, Decoded, DecodeError, Resize
from dim.data.decode import decode as decode_here
from dim.data.limits import LIMITS, Limits

TRIES = 3
SECONDS = 60.0  # a photo of the largest size allowed takes a tenth


def watched(content: bytes, *arguments: Any, **named: Any) -> Decoded:
    """As `dim.data.decode.decode`; ends this process where that takes longer than SECONDS, whatever holds it up."""
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=2)
    try:
        return decode_here(content, *arguments, **named)
    finally:
        faulthandler.cancel_dump_traceback_later()


def decode(
    content: bytes, size: int, resize: Resize, box: Box | None = None, *, scaled: bool = False, limits: Limits = LIMITS
) -> Decoded:
    """As `dim.data.decode.decode`, some 0.3 s slower. Raises DecodeError also where each of its processes died, or one
    took longer than SECONDS.
    """
    call = json.dumps(
        {"size": size, "resize": resize, "box": box, "scaled": scaled, "limits": dataclasses.asdict(limits)}
    ).encode()
    command, environment = children.command(__name__), children.environment()
    for _ in range(TRIES):
        try:
            child = subprocess.run(
                command,
                input=call + b"\n" + content,
                capture_output=True,
                env=environment,
                check=False,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise DecodeError(f"its decoding took longer than {SECONDS:.0f} s") from error
        if child.returncode > 0:
            raise RuntimeError(child.stderr.decode(errors="replace"))
        if child.returncode == 0:
            return _answer(child.stdout)
    killer = signal.Signals(-child.returncode).name
    raise DecodeError(f"its decoding killed the process ({killer}, {TRIES} times of {TRIES})")


def _answer(output: bytes) -> Decoded:
    line, _, pixels = output.partition(b"\n")
    about = json.loads(line)
    if "error" in about:
        raise DecodeError(about["error"])
    shape = about.pop("shape")
    return Decoded(np.frombuffer(pixels, np.uint8).reshape(shape), **about)


def _serve() -> None:
    arguments = json.loads(sys.stdin.buffer.readline())
    arguments["limits"] = Limits(**arguments["limits"])
    try:
        found = decode_here(sys.stdin.buffer.read(), **arguments)
    except DecodeError as error:
        sys.stdout.buffer.write(json.dumps({"error": str(error)}).encode())
        return
    about = {"shape": found.pixels.shape, "width": found.width, "height": found.height, "several": found.several}
    sys.stdout.buffer.write(json.dumps(about).encode() + b"\n" + found.pixels.tobytes())


if __name__ == "__main__":
    _serve()
