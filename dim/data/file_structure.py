"""Reads what Pillow does not report from the structure of AVIF, JPEG and JPEG 2000 files.

AVIF files (ISO/IEC 14496-12 and 23008-12) consist of nested boxes. Each box has a type of four letters and a content.
`avif_crop` reads the clean aperture, the part of a picture to show, which Pillow ignores. `avif_for_pillow` repairs
headers that Pillow refuses. `completed_jpeg` finds out whether a JPEG lacks only its end marker, or pixels as well.
`jpeg2000_grid` counts pixels and tiles, which decide how much memory decoding takes.
"""

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import IO

import numpy as np
from PIL import Image

Crop = tuple[int, int, int, int]

AVIF_BRANDS = {b"avif", b"avis"}
_ACCEPTED_FIRST = AVIF_BRANDS | {b"mif1", b"msf1"}  # Pillow opens a file only if its first brand is one of these


def brands(content: bytes) -> set[bytes]:
    """Returns the brands (names of formats that the file follows) in the file type box; empty without that box."""
    if content[4:8] != b"ftyp":
        return set()
    size = min(int.from_bytes(content[:4]), len(content))
    return {content[start : start + 4] for start in range(8, size, 4) if start != 12}


def avif_for_pillow(content: bytes) -> bytes:
    """Returns the AVIF file in a form that Pillow and libavif accept. If its boxes are broken, only the brand changes.

    Some writers name no AVIF brand, or name the brand of a profile first. Then "avif" replaces the first brand. Other
    writers omit the size of the alpha image (the property ispe). Then the picture's size replaces the bit depth of the
    alpha image (pixi), which no decoder needs.
    """
    if content[8:12] not in _ACCEPTED_FIRST or not brands(content) & AVIF_BRANDS:
        content = content[:8] + b"avif" + content[12:]
    try:
        return _with_sizes(content)
    except (IndexError, KeyError, StopIteration, ValueError):
        return content


def _with_sizes(content: bytes) -> bytes:
    """Returns `content`. In it, each item (image) with a bit depth but no size gets the first size in the file."""
    properties = _box(_box(content, b"meta")[4:], b"iprp")
    kinds = [kind for kind, _ in _boxes(_box(properties, b"ipco"))]
    ipma = _box(properties, b"ipma")
    repaired = bytearray(ipma)
    size = 1 + kinds.index(b"ispe")
    for used in _associations(ipma).values():
        by_kind = {kinds[number - 1]: span for number, *span in used if number}
        if b"ispe" not in by_kind and b"pixi" in by_kind:
            start, end = by_kind[b"pixi"]
            repaired[start:end] = size.to_bytes(end - start)
    return content.replace(ipma, bytes(repaired), 1)


def avif_crop(content: bytes) -> Crop | None:
    """Returns the clean aperture (left, top, right, bottom) of the primary picture, in decoded pixels.

    Returns None if the file declares no aperture, or if the aperture is broken or holds no pixel.
    """
    try:
        return _clean_aperture(_primary_properties(content))
    except (IndexError, KeyError, StopIteration, ValueError, ZeroDivisionError):
        return None


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields (type, content) for each box that is directly in `content`."""
    place = 0
    while place + 8 <= len(content):
        size, kind = int.from_bytes(content[place : place + 4]), content[place + 4 : place + 8]
        head = 16 if size == 1 else 8
        if size == 1:
            size = int.from_bytes(content[place + 8 : place + 16])
        end = len(content) if size == 0 else place + size
        if end < place + head:
            return
        yield kind, content[place + head : end]
        place = end


def _box(content: bytes, wanted: bytes) -> bytes:
    """Returns the content of the first box of the type `wanted`. Raises StopIteration if there is none."""
    return next(found for kind, found in _boxes(content) if kind == wanted)


def _primary_properties(content: bytes) -> dict[bytes, bytes]:
    """Returns the properties of the primary item (the picture to show), as box type → content."""
    meta = _box(content, b"meta")[4:]
    primary = _box(meta, b"pitm")
    item = int.from_bytes(primary[4 : 8 if primary[0] else 6])
    iprp = _box(meta, b"iprp")
    properties = list(_boxes(_box(iprp, b"ipco")))
    used = _associations(_box(iprp, b"ipma"))[item]
    return {properties[number - 1][0]: properties[number - 1][1] for number, _, _ in used if number}


def _associations(ipma: bytes) -> dict[int, list[tuple[int, int, int]]]:
    """Maps each item to its properties (number, start, end): `ipma[start:end]` holds the number, which starts at 1."""
    wide, long = 2 if ipma[3] & 1 else 1, 4 if ipma[0] else 2
    found, place = {}, 8
    for _ in range(int.from_bytes(ipma[4:8])):
        item, count = int.from_bytes(ipma[place : place + long]), ipma[place + long]
        place += long + 1
        spans = [(start, start + wide) for start in range(place, place + wide * count, wide)]
        essential = 0x8000 if wide == 2 else 0x80
        found[item] = [(int.from_bytes(ipma[start:end]) & ~essential, start, end) for start, end in spans]
        place += wide * count
    return found


def _clean_aperture(properties: dict[bytes, bytes]) -> Crop | None:
    """Returns the aperture of a picture. The box clap has the aperture's size and the offset of its centre."""
    if b"clap" not in properties or b"ispe" not in properties:
        return None
    full = [int.from_bytes(properties[b"ispe"][start : start + 4]) for start in (4, 8)]
    words = [int.from_bytes(properties[b"clap"][start : start + 4], signed=True) for start in range(0, 32, 4)]
    sides, offsets = ([Fraction(*words[place : place + 2]) for place in (first, first + 2)] for first in (0, 4))
    starts = [offset + (whole - side) / 2 for whole, side, offset in zip(full, sides, offsets, strict=True)]
    left, top = (max(0, floor(start)) for start in starts)
    right, bottom = (min(whole, floor(start + side)) for whole, start, side in zip(full, starts, sides, strict=True))
    return (left, top, right, bottom) if left < right and top < bottom else None


_END = b"\xff\xd9"
# Two pieces of compressed data that decode to different pixels. They contain no marker except the end marker.
_TAILS = (b"\x55\x2c\xe1\x07" * 64 + _END, b"\xb3\x9a\x0f\x48" * 64 + _END)
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # any marker except restart markers (D0 to D7); FF 00 is no marker


def completed_jpeg(content: bytes) -> bytes | None:
    """Adds the missing end marker to the JPEG `content`. Returns None if rows or refining scans are missing, too.

    A decoder ignores data that follows the last block of pixels. If a block is missing, however, it decodes such data
    instead. So the picture is complete if it looks the same with two different tails.
    """
    content = content.rstrip(b"\xff")
    if not _has_all_scans(content):
        return None
    one, other = (np.asarray(Image.open(io.BytesIO(content + tail), formats=("JPEG",))) for tail in _TAILS)
    return content + _END if np.array_equal(one, other) else None


def _has_all_scans(content: bytes) -> bool:
    """Returns whether the scans together hold all bits of all coefficients of all components (ITU T.81, B.2.3)."""
    components: bytes = b""
    missing: dict[tuple[int, int], int] = {}  # (component, coefficient) → bits not seen yet
    place = 2
    while found := _MARKER.search(content, place):
        marker, start = found[1][0], found.end()
        length = int.from_bytes(content[start : start + 2])
        segment = content[start + 2 : start + length]
        place = start + length
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            components = segment[6 : 6 + 3 * segment[5] : 3]
            missing = {(component, number): 16 for component in components for number in range(64)}
        elif marker == 0xDA:
            count = segment[0]
            first, last, bits = segment[1 + 2 * count : 4 + 2 * count]
            for component in segment[1 : 1 + 2 * count : 2]:
                missing |= {(component, number): bits & 15 for number in range(first, last + 1)}
    return bool(missing) and not any(missing.values())


_CODESTREAM = b"\xff\x4f\xff\x51"  # the first bytes of the compressed data of JPEG 2000


@dataclass(frozen=True)
class Grid:
    """The numbers of `pixels` and `tiles` in a JPEG 2000 codestream (its compressed data), and of `bands` per pixel."""

    pixels: int
    tiles: int
    bands: int


def jpeg2000_grid(file: IO[bytes]) -> Grid:
    """Returns the grid of a JPEG 2000 file, and leaves the file at the position where it was.

    The file is a codestream or has a box that holds a codestream. Raises struct.error or ValueError if it has neither.
    """
    place = file.tell()
    try:
        file.seek(_codestream(file) + len(_CODESTREAM))
        right, bottom, left, top, width, height, tiles_left, tiles_top, bands = struct.unpack(">4x8IH", file.read(38))
    finally:
        file.seek(place)
    if not width or not height:
        raise ValueError("tiles without a size")
    tiles = -(-(right - tiles_left) // width) * -(-(bottom - tiles_top) // height)
    return Grid((right - left) * (bottom - top), tiles, bands)


def _codestream(file: IO[bytes]) -> int:
    """Returns the position of the first codestream: the start of the file, or the content of a box jp2c."""
    place = 0
    while True:
        file.seek(place)
        start = file.read(16)
        if start.startswith(_CODESTREAM):
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
