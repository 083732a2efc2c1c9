"""The limits of decoding: a photo's pixels (--max-megapixels) and bytes, and the memory of a node (--memory).

`DecodeError` is the exception for photos that can't be decoded.
"""

import math
from dataclasses import dataclass

from dim.app import memory
from dim.errors import UserError

# Bytes of memory that decoding may take: per pixel, per byte of the file (which is copied), and per photo. The first is
# enough for a photo with alpha if the library of its format takes no extra memory.
ALPHA, FILE, BESIDE = 18, 2, 2**24
MEGAPIXELS = 178.0  # the default of --max-megapixels
MOST_MEGAPIXELS = 100_000  # 316,000 × 316,000 pixels; no photo is larger, and sizes in bytes would soon overflow


class DecodeError(Exception):
    """A photo cannot be decoded. The message is the reason."""


@dataclass(frozen=True)
class Limits:
    """The largest photo that is accepted. It has at most `pixels`, and its file has at most `bytes`.

    The photos that a node decodes at a time may take half of its memory, or of `node` bytes if that is less.
    """

    pixels: int = round(1e6 * MEGAPIXELS)
    bytes: int = 256 * 2**20
    node: int | None = None

    @property
    def memory(self) -> int:
        """The bytes of memory that decoding a photo may take."""
        return ALPHA * self.pixels + FILE * self.bytes + BESIDE

    @property
    def at_once(self) -> int:
        """The number of photos of the largest size that this machine may decode at a time, at least 1."""
        node = memory.machine()
        return max(1, min(node, self.node or node) // 2 // self.memory)

    def megapixels_for(self, memory: int) -> int:
        """Returns the --max-megapixels with which decoding may take `memory` bytes."""
        return math.ceil((memory - FILE * self.bytes - BESIDE) / ALPHA / 1e6)


LIMITS = Limits()


def of_megapixels(most: float, node: str | None) -> Limits:
    """The limits for --max-megapixels `most` and --memory `node`. Raises UserError if a value is out of range."""
    if most <= 0:
        raise UserError(f"--max-megapixels must be above 0, not {most}")
    if most > MOST_MEGAPIXELS:
        raise UserError(f"--max-megapixels must be at most {MOST_MEGAPIXELS:,}, not {most:g}")
    return Limits(pixels=round(1e6 * most), node=None if node is None else memory.parsed(node))


def check_size(size: int, limits: Limits = LIMITS) -> None:
    """Raises DecodeError if a photo's file of `size` bytes is over the limit."""
    if size > limits.bytes:
        raise DecodeError(f"the file has {size:,} bytes; the limit is {limits.bytes:,}")


def check_pixels(width: int, height: int, limits: Limits = LIMITS) -> None:
    """Raises DecodeError if a photo of `width` × `height` pixels is over the limit."""
    if width * height > limits.pixels:
        raise DecodeError(
            f"the photo has {width:,} × {height:,} pixels; the limit is {limits.pixels:,}; "
            f"{allowance(math.ceil(width * height / 1e6))}"
        )


def allowance(megapixels: int) -> str:
    """Returns advice for a message: what to do about a photo that needs a limit of `megapixels`."""
    if megapixels > MOST_MEGAPIXELS:
        return "no photo is that large: the file is broken or malicious"
    return f"--max-megapixels {megapixels} allows it"
