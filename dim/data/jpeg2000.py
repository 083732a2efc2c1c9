"""What a JPEG 2000 file says of its samples, which Pillow doesn't pass on."""

import struct
from dataclasses import dataclass
from typing import IO

_START = b"\xff\x4f\xff\x51"  # of a codestream


@dataclass(frozen=True)
class Grid:
    """How many `pixels` the codestream has, in how many `tiles`, and how many `bands` each pixel has."""

    pixels: int
    tiles: int
    bands: int


def grid(file: IO[bytes]) -> Grid:
    """The grid of the JPEG 2000 `file`, a codestream or one in boxes; leaves the file where it was.

    Raises struct.error or ValueError where there is none.
    """
    place = file.tell()
    try:
        file.seek(_codestream(file) + len(_START))
        right, bottom, left, top, width, height, tiles_left, tiles_top, bands = struct.unpack(">4x8IH", file.read(38))
    finally:
        file.seek(place)
    if not width or not height:
        raise ValueError("tiles without a size")
    tiles = -(-(right - tiles_left) // width) * -(-(bottom - tiles_top) // height)
    return Grid((right - left) * (bottom - top), tiles, bands)


def _codestream(file: IO[bytes]) -> int:
    """Where in the file the first codestream begins."""
    place = 0
    while True:
        file.seek(place)
        start = file.read(16)
        if start.startswith(_START):
            return place
        length, kind = struct.unpack(">I4s", start[:8])
        header = 8
        if length == 1:
            (length,), header = struct.unpack(">Q", start[8:]), 16
        if kind == b"jp2c":
            place += header
        elif length >= header:
            place += length
        else:
            raise ValueError("no codestream")
