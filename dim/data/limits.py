"""What a photo may need at most, and the one exception that says what is wrong with it."""

import math
from dataclasses import dataclass

MEGAPIXELS = 178.0  # the default limit


class DecodeError(Exception):
    """A photo that cannot be decoded; the message is the reason."""


@dataclass(frozen=True)
class Limits:
    """What a photo may need at most: `pixels` when decoded, `bytes` in its file."""

    pixels: int = round(1e6 * MEGAPIXELS)
    bytes: int = 256 * 2**20


LIMITS = Limits()


def check_size(size: int, limits: Limits = LIMITS) -> None:
    """Raises DecodeError where a photo's file of `size` bytes is over the limit."""
    if size > limits.bytes:
        raise DecodeError(f"the file has {size:,} bytes; the limit is {limits.bytes:,}")


def check_pixels(width: int, height: int, limits: Limits = LIMITS) -> None:
    """Raises DecodeError where a photo of `width` × `height` pixels is over the limit."""
    if width * height > limits.pixels:
        needed = math.ceil(width * height / 1e6)
        raise DecodeError(
            f"the photo has {width:,} × {height:,} pixels; the limit is {limits.pixels:,}; "
            f"--max-megapixels {needed} allows it"
        )
