"""Estimates how much memory decoding a photo takes, from the photo's header, and makes large photos take turns.

The estimates (`of_image`, `of_samples`) are based on this table. It has the largest measured values in bytes per pixel,
without the file itself (Pillow 13.0, libwebp 1.6.0, libavif 1.4.2, OpenJPEG 2.5.4):

    format                         RGB    with alpha    others
    JPEG, one scan                  4.2                 grey 5.2, CMYK 8.2
    JPEG, several scans            10.1                 CMYK 12.1
    PNG, also interlaced            4.1        17.5     palette 5.1, 16-bit grey 13.1
    GIF                                        14.0     palette 5.1
    TIFF                           11.4        16.6     CMYK 17.2, 16-bit grey 11.2, 16-bit colours 25 to 29
    BMP, PPM                        4.1        17.5     16-bit grey 16.0
    WebP                           16.1        30.0
    AVIF, also of 12 bits          13.9        24.0     grey 6.8
    JPEG 2000                      19.6        25.5     grey 6.2, 16-bit grey 14.1

Turning a photo upright takes up to 4 bytes per pixel more, and so does converting its colours to sRGB. Loading comes
first; if it takes as much, the maximum stays the same. Tests compare the estimates with measurements.

`turn` makes photos wait for each other if they would not fit in memory together. A turn is a lock on a file. So
all jobs of a user on a machine share the turns, and the kernel gives a turn back when its process dies.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from PIL import Image

from dim.data import file_structure
from dim.data.limits import ALPHA, BESIDE, FILE, Limits
from dim.io import scratch

# Bytes per pixel while an image is loaded: `_LOADED` for the image, and `_LOADING` for the library of its format.
_LOADED = 4
_LOADING = {"WEBP": 16, "AVIF": 16, "PPM": 4}
_SAMPLE = 6  # bytes per pixel and band for the library of JPEG 2000
_TILE, _TILE_BAND = 9500, 1200  # bytes for the library of JPEG 2000, per tile of any size, and per band of a tile
_KEPT = {"WEBP": 12, "AVIF": 12}  # bytes per pixel that the library keeps after loading
# Bytes per pixel while an image is converted to upright RGB, by mode. `_OTHERS` is for other modes. A colour profile
# takes `_PROFILE` bytes more, and premultiplied alpha takes `_MULTIPLIED` bytes more.
_CONVERTED = {"RGB": 12, "L": 10, "P": 10, "1": 10, "I;16": 14, "I;16B": 14, "I": 16}
_OTHERS, _PROFILE, _MULTIPLIED = 16, 4, 16
OUTPUT = 16  # bytes per pixel of the resized output


def of_image(image: Image.Image, length: int) -> int:
    """Returns an upper bound of the bytes to decode `image`, which is not loaded yet. Its file has `length` bytes."""
    width, height = image.size
    area = width * height
    converted = ALPHA if image.has_transparency_data else _CONVERTED.get(image.mode, _OTHERS)
    if image.info.get("icc_profile"):
        converted += _PROFILE
    loading = _LOADED * area + _library(image, area)
    converting = (_KEPT.get(str(image.format), 0) + converted) * area
    return max(loading, converting) + FILE * length + BESIDE


def of_samples(area: int, chunk: int, samples: int, size: int, *, alpha: bool, multiplied: bool, length: int) -> int:
    """Returns an upper bound of the bytes of memory that decoding a TIFF takes, if the file has `length` bytes.

    The photo has `area` pixels, and each strip or tile has `chunk` pixels. A pixel has `samples` samples of `size`
    bytes. `alpha` says whether there are extra samples, and `multiplied` whether the colours are premultiplied.
    """
    reading = samples * size * (2 * area + chunk)
    converted = (ALPHA if alpha else _OTHERS) + _PROFILE + (_MULTIPLIED if multiplied else 0)
    converting = (samples * size + converted) * area
    return max(reading, converting) + FILE * length + BESIDE


def _library(image: Image.Image, area: int) -> int:
    """Returns the bytes that the library of the image's format takes for itself while it loads the image."""
    if image.format == "JPEG2000":
        # OpenJPEG reads sizes from the codestream, not from the boxes around it. (Only an opened image has `fp`.)
        grid = file_structure.jpeg2000_grid(getattr(image, "fp"))  # noqa: B009
        return _SAMPLE * grid.bands * max(area, grid.pixels) + (_TILE + _TILE_BAND * grid.bands) * grid.tiles
    return _LOADING.get(str(image.format), 0) * area


SMALL = 2**28  # bytes; a photo that needs at most this much memory does not wait
SECONDS = 0.02  # seconds between two tries to get a turn


@contextlib.contextmanager
def turn(needed: int, limits: Limits) -> Iterator[None]:
    """Waits for a turn to decode a photo that needs `needed` bytes, and holds the turn within the block.

    A photo that needs at most SMALL bytes does not wait. For the others, there are `limits.at_once` turns, but at most
    one per core.
    """
    if needed <= SMALL:
        yield
        return
    lock = _taken(min(limits.at_once, os.cpu_count() or 1))
    try:
        yield
    finally:
        os.close(lock)


def _taken(turns: int) -> int:
    """Waits until it can lock one of `turns` files. Returns the file's descriptor, and closing that ends the turn."""
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
