"""What a file in the container of AVIF and HEIC says of its picture (ISO/IEC 14496-12 and 23008-12).

libavif, which Pillow decodes AVIF by, turns the picture's clean aperture over to its caller, and Pillow drops it.

A JPEG without its end marker: whether anything of the picture is missing.

What a JPEG 2000 file says of its samples, which Pillow doesn't pass on.
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

BRANDS = {b"avif", b"avis"}
_KNOWN_FIRST = BRANDS | {b"mif1", b"msf1"}


def brands(content: bytes) -> set[bytes]:
    """What the file says it can be read as, the first of its words; none where it is of another container."""
    if content[4:8] != b"ftyp":
        return set()
    size = min(int.from_bytes(content[:4]), len(content))
    return {content[start : start + 4] for start in range(8, size, 4) if start != 12}


def accepted(content: bytes) -> bytes:
    """The file in a form that Pillow and libavif take, if there is one.

    Some writers name a profile's brand first, or none of AVIF's. Others give no size (ispe) for the alpha, which is
    that of the picture: it is put where the alpha's number of bits (pixi) stood, which nobody needs.
    """
    if content[8:12] not in _KNOWN_FIRST or not brands(content) & BRANDS:
        content = content[:8] + b"avif" + content[12:]
    try:
        return _with_sizes(content)
    except (IndexError, KeyError, StopIteration, ValueError):
        return content


def _with_sizes(content: bytes) -> bytes:
    about = _box(_box(content, b"meta")[4:], b"iprp")
    kinds = [kind for kind, _ in _boxes(_box(about, b"ipco"))]
    ipma = _box(about, b"ipma")
    mended = bytearray(ipma)
    size = 1 + kinds.index(b"ispe")
    for used in _associations(ipma).values():
        by_kind = {kinds[number - 1]: span for number, *span in used if number}
        if b"ispe" not in by_kind and b"pixi" in by_kind:
            start, end = by_kind[b"pixi"]
            mended[start:end] = size.to_bytes(end - start)
    return content.replace(ipma, bytes(mended), 1)


def crop(content: bytes) -> Crop | None:
    """The clean aperture (left, top, right, bottom) of the primary picture, in pixels of what is decoded; None where
    there is none, or none that holds a pixel.
    """
    try:
        return _clean_aperture(_primary_properties(content))
    except (IndexError, KeyError, StopIteration, ValueError, ZeroDivisionError):
        return None


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kind and the content of each box."""
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
    return next(found for kind, found in _boxes(content) if kind == wanted)


def _primary_properties(content: bytes) -> dict[bytes, bytes]:
    """The properties of the primary item, by kind."""
    meta = _box(content, b"meta")[4:]
    primary = _box(meta, b"pitm")
    item = int.from_bytes(primary[4 : 8 if primary[0] else 6])
    about = _box(meta, b"iprp")
    properties = list(_boxes(_box(about, b"ipco")))
    used = _associations(_box(about, b"ipma"))[item]
    return {properties[number - 1][0]: properties[number - 1][1] for number, _, _ in used if number}


def _associations(ipma: bytes) -> dict[int, list[tuple[int, int, int]]]:
    """For each item, the number of each of its properties, from 1, and where in `ipma` it stands: start and end."""
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
# Two pieces of entropy-coded data that no decoder takes for the same. Neither holds a marker.
_TAILS = (b"\x55\x2c\xe1\x07" * 64 + _END, b"\xb3\x9a\x0f\x48" * 64 + _END)
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # no restart (D0 to D7), no stuffed byte


def ended(content: bytes) -> bytes | None:
    """The JPEG in `content`, which has no end marker, with one; None where rows are missing, or scans that refine them.

    What comes after the last block changes nothing of the picture, but would be taken for blocks that are missing. So
    the picture is whole if it is the same with either of two tails.
    """
    content = content.rstrip(b"\xff")
    if not _has_all_scans(content):
        return None
    one, other = (np.asarray(Image.open(io.BytesIO(content + tail), formats=("JPEG",))) for tail in _TAILS)
    return content + _END if np.array_equal(one, other) else None


def _has_all_scans(content: bytes) -> bool:
    """Whether there is a scan for each bit of each coefficient of each component (ITU T.81, B.2.3)."""
    components: bytes = b""
    missing: dict[tuple[int, int], int] = {}  # bits of (component, coefficient) that are to come
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
