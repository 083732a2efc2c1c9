"""How much memory a photo takes while it is decoded, told from its header before a pixel is.

Bytes a pixel, the most that was measured (Pillow 13.0, libwebp 1.6.0, libavif 1.4.2, OpenJPEG 2.5.4), beside the file:

    format                         RGB    with alpha    others
    JPEG, one scan                  4.2                 grey 5.2, CMYK 8.2
    JPEG, several (progressive)    10.1                 CMYK 12.1
    PNG, also interlaced            4.1        17.5     palette 5.1, 16-bit grey 13.1
    GIF                                        14.0     palette 5.1
    TIFF                           11.4        16.6     CMYK 17.2, 16-bit grey 11.2, of 16 bits 25 to 29
    BMP, PPM                        4.1        17.5     16-bit grey 16.0
    WebP                           16.1        30.0
    AVIF, also of 12 bits          13.9        24.0     grey 6.8
    JPEG 2000                      19.6        25.5     grey 6.2, 16-bit grey 14.1

To turn a photo upright takes up to 4 more, and to bring its colours to sRGB too, where these don't take as much before.
Tests compare what is estimated with what decoding takes.

Who may decode now: photos that take much memory wait for their turn, so that a machine's memory holds all of them.

The turns are locks on files, so they count for all threads and processes of all jobs on a machine, and the kernel gives
back the turn of a process that dies.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import Image

from dim.data import containers
from dim.data.limits import ALPHA, BESIDE, FILE
from dim.io import scratch

# Bytes a pixel. The image itself, and what its format's library takes until it is loaded, or keeps beside it.
_LOADED = 4
_LOADING = {"WEBP": 16, "AVIF": 16, "PPM": 4}
_SAMPLE = 6  # of JPEG 2000, for each band
_TILE, _TILE_BAND = 9500, 1200  # of JPEG 2000, for each tile, however small; and for each band of it
_KEPT = {"WEBP": 12, "AVIF": 12}
# From the image to upright RGB.
_OTHERS, _PROFILE, _MULTIPLIED = 16, 4, 16
_CONVERTED = {"RGB": 12, "L": 10, "P": 10, "1": 10, "I;16": 14, "I;16B": 14, "I": 16}
OUTPUT = 16  # of what is asked for


def of_image(image: Image.Image, length: int) -> int:
    """The bytes that decoding takes at most of `image`, which Pillow has opened but not loaded, from a file of `length`
    bytes.
    """
    width, height = image.size
    area, kind = width * height, str(image.format)
    converted = ALPHA if image.has_transparency_data else _CONVERTED.get(image.mode, _OTHERS)
    if image.info.get("icc_profile"):
        converted += _PROFILE
    loading = _LOADED * area + _library(image, area)
    converting = (_KEPT.get(kind, 0) + converted) * area
    return max(loading, converting) + FILE * length + BESIDE


def of_samples(area: int, chunk: int, samples: int, size: int, *, alpha: bool, multiplied: bool, length: int) -> int:
    """The bytes that decoding takes at most of a TIFF of `area` pixels of `samples` samples, each of `size` bytes, of
    which `chunk` pixels lie in a strip or tile; with `alpha` or without, by which colours may be `multiplied`.
    """
    reading = samples * size * (2 * area + chunk)
    converted = (ALPHA if alpha else _OTHERS) + _PROFILE + (_MULTIPLIED if multiplied else 0)
    converting = (samples * size + converted) * area
    return max(reading, converting) + FILE * length + BESIDE


def _library(image: Image.Image, area: int) -> int:
    """The bytes that the library of the format takes beside the image until it is loaded."""
    if image.format == "JPEG2000":
        grid = containers.jpeg2000_grid(_file(image))  # which counts, whatever the boxes around it say
        return _SAMPLE * grid.bands * max(area, grid.pixels) + (_TILE + _TILE_BAND * grid.bands) * grid.tiles
    return _LOADING.get(str(image.format), 0) * area


def _file(image: Image.Image) -> IO[bytes]:
    file: IO[bytes] = getattr(image, "fp")  # noqa: B009  (only an opened image has it)
    return file


SMALL = 2**28  # bytes; a photo that takes no more waits for nobody
SECONDS = 0.02  # between two looks
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


@contextlib.contextmanager
def turn(needed: int, most: int) -> Iterator[None]:
    """Waits for a turn to decode a photo that takes `needed` bytes, and holds it within the block.

    At one time, as many of more than SMALL are as half of the memory holds if each takes `most`, and one a core; at
    least one.
    """
    if needed <= SMALL:
        yield
        return
    lock = _taken(max(1, min(memory() // 2 // most, os.cpu_count() or 1)))
    try:
        yield
    finally:
        os.close(lock)


def memory() -> int:
    """The bytes of memory that this machine, or the container on it, has."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in map(Path, _LIMITS):
        with contextlib.suppress(OSError, ValueError):  # there is none, or it says "max"
            found = min(found, int(path.read_text()))
    return found


def _taken(turns: int) -> int:
    folder = scratch.kept() / "turns"
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for number in range(turns):
            lock = os.open(folder / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
            else:
                return lock
        time.sleep(SECONDS)
