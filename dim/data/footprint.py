"""Estimates from a photo's header how much memory decoding it takes, and makes large photos take turns.

The estimates (`of_image`, `of_samples`) rest on the largest measured values, in bytes a pixel, not counting the file
(Pillow 13.0, libwebp 1.6.0, libavif 1.4.2, OpenJPEG 2.5.4):

    format                         RGB    with alpha    others
    JPEG, one scan                  4.2                 grey 5.2, CMYK 8.2
    JPEG, several (progressive)    10.1                 CMYK 12.1
    PNG, also interlaced            4.1        17.5     palette 5.1, 16-bit grey 13.1
    GIF                                        14.0     palette 5.1
    TIFF                           11.4        16.6     CMYK 17.2, 16-bit grey 11.2, 16-bit colours 25 to 29
    BMP, PPM                        4.1        17.5     16-bit grey 16.0
    WebP                           16.1        30.0
    AVIF, also of 12 bits          13.9        24.0     grey 6.8
    JPEG 2000                      19.6        25.5     grey 6.2, 16-bit grey 14.1

Turning a photo upright takes up to 4 more, and so does converting its colours to sRGB, unless loading it already took
as much. Tests compare the estimates with measurements.

`turn` makes photos wait for each other if they would not fit in memory together. A turn is a lock on a file, so it
counts for all processes of all jobs on a machine, and the kernel releases it when a process dies.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from dim.data import containers
from dim.data.limits import ALPHA, BESIDE, FILE
from dim.io import scratch

# Bytes a pixel while the image is loaded: the image itself, and what the library of a format takes beside it.
_LOADED = 4
_LOADING = {"WEBP": 16, "AVIF": 16, "PPM": 4}
_SAMPLE = 6  # JPEG 2000, for each band
_TILE, _TILE_BAND = 9500, 1200  # bytes of JPEG 2000 for each tile of any size, and for each band of a tile
_KEPT = {"WEBP": 12, "AVIF": 12}  # what the library keeps after loading
# Bytes a pixel while the image is converted to upright RGB, by mode; a profile and premultiplied alpha add to these.
_CONVERTED = {"RGB": 12, "L": 10, "P": 10, "1": 10, "I;16": 14, "I;16B": 14, "I": 16}
_OTHERS, _PROFILE, _MULTIPLIED = 16, 4, 16
OUTPUT = 16  # bytes a pixel of the resized output


def of_image(image: Image.Image, length: int) -> int:
    """An upper bound of the bytes that decoding takes. `image` is opened, but not loaded, from `length` bytes."""
    width, height = image.size
    area = width * height
    converted = ALPHA if image.has_transparency_data else _CONVERTED.get(image.mode, _OTHERS)
    if image.info.get("icc_profile"):
        converted += _PROFILE
    loading = _LOADED * area + _library(image, area)
    converting = (_KEPT.get(str(image.format), 0) + converted) * area
    return max(loading, converting) + FILE * length + BESIDE


def of_samples(area: int, chunk: int, samples: int, size: int, *, alpha: bool, multiplied: bool, length: int) -> int:
    """An upper bound of the bytes that decoding a TIFF takes, from a file of `length` bytes.

    It has `area` pixels, `chunk` of them in a strip or tile, and `samples` samples of `size` bytes a pixel. With
    `alpha` it has extra samples, and with `multiplied` the colours are premultiplied.
    """
    reading = samples * size * (2 * area + chunk)
    converted = (ALPHA if alpha else _OTHERS) + _PROFILE + (_MULTIPLIED if multiplied else 0)
    converting = (samples * size + converted) * area
    return max(reading, converting) + FILE * length + BESIDE


def _library(image: Image.Image, area: int) -> int:
    """The bytes that the format's library takes beside the image while it loads."""
    if image.format == "JPEG2000":
        # OpenJPEG goes by the codestream, not by the boxes around it. (Only an opened image has `fp`.)
        grid = containers.jpeg2000_grid(getattr(image, "fp"))  # noqa: B009
        return _SAMPLE * grid.bands * max(area, grid.pixels) + (_TILE + _TILE_BAND * grid.bands) * grid.tiles
    return _LOADING.get(str(image.format), 0) * area


SMALL = 2**28  # bytes; a photo that needs no more does not wait
SECONDS = 0.02  # between two tries to get a turn
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # a container's, cgroup 2 and 1


@contextlib.contextmanager
def turn(needed: int, most: int) -> Iterator[None]:
    """Waits for a turn to decode a photo that needs `needed` bytes, and holds the turn within the block.

    Photos of up to SMALL bytes do not wait. The others are decoded at most one per core at a time, and only as many as
    fit in half of the memory if each takes `most` bytes, but at least one.
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
    """The bytes of memory of this machine, or of the container that the process runs in."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in map(Path, _LIMITS):
        with contextlib.suppress(OSError, ValueError):  # there is no such file, or it says "max"
            found = min(found, int(path.read_text()))
    return found


def _taken(turns: int) -> int:
    """Waits until one of `turns` files can be locked; returns its descriptor. Closing it gives the turn back."""
    folder = scratch.persistent_folder() / "turns"
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
