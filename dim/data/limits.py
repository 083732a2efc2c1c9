"""What a photo may need at most, and the one exception that says what is wrong with it."""

import math
from dataclasses import dataclass

from dim.errors import UserError

# Bytes that decoding may take: for each pixel, what a photo with alpha takes whose format adds nothing; copies of the
# file; and beside them.
ALPHA, FILE, BESIDE = 18, 2, 2**24
MEGAPIXELS = 178.0  # the default of --max-megapixels
MOST_MEGAPIXELS = 100_000  # a square of 316,000 pixels a side; no photo is larger, and sizes in bytes soon overflow


class DecodeError(Exception):
    """A photo that cannot be decoded; the message is the reason."""


@dataclass(frozen=True)
class Limits:
    """What a photo may need at most: `pixels` when decoded, `bytes` in its file."""

    pixels: int = round(1e6 * MEGAPIXELS)
    bytes: int = 256 * 2**20

    @property
    def memory(self) -> int:
        """The bytes of memory that its decoding may take."""
        return ALPHA * self.pixels + FILE * self.bytes + BESIDE

    def megapixels_for(self, memory: int) -> int:
        """The megapixels under which `memory` bytes would be allowed."""
        return math.ceil((memory - FILE * self.bytes - BESIDE) / ALPHA / 1e6)


LIMITS = Limits()


def of_megapixels(most: float) -> Limits:
    """The limits under --max-megapixels `most`. Raises UserError where that is none."""
    if most <= 0:
        raise UserError(f"--max-megapixels must be above 0, not {most}")
    if most > MOST_MEGAPIXELS:
        raise UserError(f"--max-megapixels must be at most {MOST_MEGAPIXELS:,}, not {most:g}")
    return Limits(pixels=round(1e6 * most))


def check_size(size: int, limits: Limits = LIMITS) -> None:
    """Raises DecodeError where a photo's file of `size` bytes is over the limit."""
    if size > limits.bytes:
        raise DecodeError(f"the file has {size:,} bytes; the limit is {limits.bytes:,}")


def check_pixels(width: int, height: int, limits: Limits = LIMITS) -> None:
    """Raises DecodeError where a photo of `width` × `height` pixels is over the limit."""
    if width * height > limits.pixels:
        raise DecodeError(
            f"the photo has {width:,} × {height:,} pixels; the limit is {limits.pixels:,}; "
            f"{allowance(math.ceil(width * height / 1e6))}"
        )


def allowance(megapixels: int) -> str:
    """What to do about a photo that takes a limit of so many megapixels, as a message says it."""
    if megapixels > MOST_MEGAPIXELS:
        return "no photo is so large: it is broken, or made to fill the memory"
    return f"--max-megapixels {megapixels} allows it"
