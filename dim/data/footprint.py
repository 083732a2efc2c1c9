"""How much memory a photo takes while it is decoded, told from its header before a pixel is.

Bytes a pixel, the most that was measured (Pillow 13.0, libwebp 1.6.0, libavif 1.4.2, OpenJPEG 2.5.4), beside the file:

    format                         RGB    with alpha    others
    JPEG, one scan                  4.2                 grey 5.2, CMYK 8.2
    JPEG, several (progressive)    10.1                 CMYK 12.1
    PNG, also interlaced            4.1        16.1     palette 5.1, 16-bit grey 13.1
    GIF                                        13.0     palette 5.1
    TIFF                            7.0        16.1     CMYK 8.1, 16-bit grey 13.2
    BMP, PPM                        4.1        16.1     16-bit grey 16.0
    WebP                           16.1        25.3
    AVIF, also of 12 bits          13.9        21.2     grey 6.8
    JPEG 2000                      19.6        24.7     grey 6.2, 16-bit grey 14.1

To turn a photo upright takes up to 4 more, where these don't take as much before. Tests compare what is estimated with
what decoding takes.
"""

from typing import IO

from PIL import Image

from dim.data import jpeg2000

# Bytes a pixel. The image itself, and what its format's library takes until it is loaded, or keeps beside it.
_LOADED = 4
_LOADING = {"WEBP": 16, "AVIF": 16, "TIFF": 8, "PPM": 4}
_COEFFICIENT = 2  # of JPEG, for each band; all are kept where there are several scans
_SAMPLE = 6  # of JPEG 2000, for each band
_TILE, _TILE_BAND = 9500, 1200  # of JPEG 2000, for each tile, however small; and for each band of it
_KEPT = {"WEBP": 12, "AVIF": 12}
# From the image to upright RGB.
_ALPHA, _OTHERS = 16, 12
_CONVERTED = {"RGB": 8, "L": 9, "P": 9, "1": 9, "I;16": 14, "I;16B": 14, "I": 16}
_OUTPUT = 16  # of what is asked for

_FILE = 2  # copies
_BESIDE = 2**24
_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # TIFF's tags


def most(pixels: int, length: int) -> int:
    """The bytes that decoding may take where a photo may have so many `pixels`, and its file `length` bytes: what a
    photo with alpha takes whose format adds nothing.
    """
    return _ALPHA * pixels + _FILE * length + _BESIDE


def estimated(image: Image.Image, length: int, output: int = 0) -> int:
    """The bytes that decoding takes at most: of `image`, opened but not loaded, from a file of `length` bytes, where
    `output` pixels are asked for.
    """
    width, height = image.size
    area, kind = width * height, str(image.format)
    converted = _ALPHA if image.has_transparency_data else _CONVERTED.get(image.mode, _OTHERS)
    loading = _LOADED * area + _library(image, area)
    converting = (_KEPT.get(kind, 0) + converted) * area
    return max(loading, converting) + _OUTPUT * output + _FILE * length + _BESIDE


def _library(image: Image.Image, area: int) -> int:
    """The bytes that the library of the format takes beside the image until it is loaded."""
    bands = len(image.getbands())
    if image.format in ("JPEG", "MPO"):
        return _COEFFICIENT * bands * area if _has_several_scans(image, bands) else 0
    if image.format == "JPEG2000":
        grid = jpeg2000.grid(_file(image))  # which counts, whatever the boxes around it say
        return _SAMPLE * grid.bands * max(area, grid.pixels) + (_TILE + _TILE_BAND * grid.bands) * grid.tiles
    if image.format == "TIFF":  # whose tiles may be larger than the photo
        tags = getattr(image, "tag_v2", {})
        area = max(area, tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_HEIGHT, 0))
    return _LOADING.get(str(image.format), 0) * area


def _has_several_scans(image: Image.Image, bands: int) -> bool:
    if "progressive" in image.info:
        return True
    # Pillow has read up to the end of the first scan's header, which says how many of the bands are in it.
    file, length = _file(image), 6 + 2 * bands
    if file.tell() < length:
        return True
    file.seek(-length, 1)
    header = file.read(length)
    return bool(header[:3] != bytes([0, length, bands]))


def _file(image: Image.Image) -> IO[bytes]:
    file: IO[bytes] = getattr(image, "fp")  # noqa: B009  (only an opened image has it)
    return file
