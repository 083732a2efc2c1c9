"""TIFF: tifffile reads the samples (a pixel's numbers), and this module turns them into colours by the file's tags.

Pillow supports some ninety combinations of tags. It refuses most others and misreads a few: it takes 12 bits for 16,
separate planes of 16 bits for planes of 8, and white for black. tifffile reads the samples of almost all combinations,
and imagecodecs decompresses them. This module decides which sample is which colour.
"""

import logging
from dataclasses import dataclass
from typing import IO, Any, ClassVar

import numpy as np
from PIL import Image

from dim.data import footprint
from dim.data.limits import DecodeError, Limits, check_pixels

# The first bytes of TIFF and BigTIFF files, in both byte orders.
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
RAW = "a camera raw file; export it as JPEG"

# Values of the tag for the photometric interpretation, which says what the samples mean.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _CIE_LAB, _ICC_LAB = 0, 1, 2, 3, 5, 6, 8, 9
_RAW_COLOURS = (32803, 34892)  # colour filter array, linear raw
_MODES = {_RGB: "RGB", _PALETTE: "P", _CMYK: "CMYK", _YCBCR: "YCbCr"}  # photometric interpretation → Pillow's mode
_MODES |= {_WHITE_IS_ZERO: "L", _BLACK_IS_ZERO: "L", _CIE_LAB: "LAB", _ICC_LAB: "LAB"}
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"  # markers in a JPEG: start of a scan, end of the image
_OLD_JPEG, _JPEG = 6, (7, 34892)  # values of the tag for the compression
_ORIENTATION, _COLOUR_MAP, _INKS, _PROFILE, _DNG = 274, 320, 332, 34675, 50706  # numbers of tags
_REDUCED, _MASK = 1, 4  # bits of the subfile type: the page is a thumbnail, or a mask, of another page
# When libtiff decodes, it applies a part of the orientation. `_by_libtiff` undoes this, and the caller applies it all.
_FLIPPED_BY_LIBTIFF = {
    **dict.fromkeys((2, 6), Image.Transpose.FLIP_LEFT_RIGHT),
    **dict.fromkeys((3, 7), Image.Transpose.ROTATE_180),
    **dict.fromkeys((4, 8), Image.Transpose.FLIP_TOP_BOTTOM),
}
_UNUSED, _ASSOCIATED, _UNASSOCIATED = 0, 1, 2  # kinds of extra samples: no alpha, premultiplied alpha, straight alpha
_PREMULTIPLIED = {"L": "La", "RGB": "RGBa"}  # Pillow's mode → the same with premultiplied alpha
_MOST_SAMPLES = 8  # per pixel
# Tags that must be one number. tifffile returns a tuple if a file gives several numbers.
_NUMBERS = (
    *("imagewidth", "imagelength", "imagedepth", "samplesperpixel", "bitspersample", "planarconfig", "photometric"),
    *("compression", "subfiletype", "rowsperstrip", "tilewidth", "tilelength"),
)
_ROWS = 256  # rows that are converted to 8 bits at a time


@dataclass(frozen=True)
class Tiff:
    """The first page of a TIFF file; see `dim.data.formats.OpenedPhoto`."""

    size: tuple[int, int]
    orientation: int
    profile: bytes | None
    several: bool
    _page: Any
    _file: IO[bytes]

    format: ClassVar[str] = "TIFF"

    def memory(self, length: int) -> int:
        """See `OpenedPhoto`."""
        page, (width, height) = self._page, self.size
        chunk = page.tilewidth * page.tilelength if page.is_tiled else width * min(page.rowsperstrip, height)
        layout = (width * height, chunk, page.samplesperpixel, -(-page.bitspersample // 8))
        extra = [int(kind) for kind in page.extrasamples]
        return footprint.of_samples(*layout, alpha=bool(extra), multiplied=_ASSOCIATED in extra, length=length)

    def draft(self, size: tuple[int, int]) -> None:
        """Does nothing: a TIFF is decoded at its full size."""

    def load(self) -> tuple[Image.Image, Image.Image | None]:
        """See `OpenedPhoto`. Raises any exception that tifffile or imagecodecs raises."""
        page = self._page
        is_jpeg = page.compression in _JPEG
        if page.compression == _OLD_JPEG or (page.photometric == _YCBCR and page.bitspersample == 8 and not is_jpeg):
            return _by_libtiff(self._file, self.orientation), None
        if is_jpeg:
            _require_ends(page, self._file)
        samples = _samples(page)
        mode = "RGB" if is_jpeg and page.photometric == _YCBCR else _MODES[page.photometric]
        colours = 1 if mode == "P" else len(Image.new(mode, (1, 1)).getbands())
        if samples.shape[2] < colours:
            raise DecodeError(f"a TIFF of {samples.shape[2]} samples a pixel; its colours need {colours}")
        top = 2**page.bitspersample - 1
        if mode == "P":
            image = _by_palette(samples[..., 0], page.tags.valueof(_COLOUR_MAP))
        else:
            image = _image(_coloured(samples[..., :colours], page, top), mode)
        kinds = [int(kind) for kind in page.extrasamples] or [_UNASSOCIATED] * (samples.shape[2] - colours)
        extra = next((number for number, kind in enumerate(kinds) if kind != _UNUSED), None)
        if extra is None:
            return image, None
        alpha = Image.fromarray(_eight_bits(samples[..., colours + extra], top))
        return _divided(image, alpha) if kinds[extra] == _ASSOCIATED else image, alpha


def open_tiff(file: IO[bytes], limits: Limits) -> Tiff:
    """Opens the first page of a TIFF. Raises DecodeError if the page cannot be decoded or is over the limits."""
    import tifffile  # noqa: PLC0415  (the import takes a quarter of a second, so it waits for the first TIFF)

    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # exceptions already say what is wrong with a file
    pages = tifffile.TiffFile(file).pages
    try:
        page: Any = pages.first
    except IndexError as error:
        raise DecodeError("the TIFF is truncated: the directory of its first page is missing") from error
    for name in _NUMBERS:
        if not isinstance(getattr(page, name), int):
            raise DecodeError(f"a TIFF whose {name} is not one number")
    if page.subfiletype & _REDUCED or page.photometric in _RAW_COLOURS or _DNG in page.tags:
        raise DecodeError(RAW)
    size = page.imagewidth, page.imagelength
    check_pixels(*size, limits)
    _check_layout(page)
    orientation, profile = page.tags.valueof(_ORIENTATION), page.tags.valueof(_PROFILE)
    orientation = int(orientation) if isinstance(orientation, int) else 1
    return Tiff(size, orientation, profile if isinstance(profile, bytes) else None, _several(pages), page, file)


def _check_layout(page: Any) -> None:
    """Raises DecodeError if samples have an unknown meaning, are missing, or are too many per pixel."""
    if page.photometric not in _MODES:
        raise DecodeError(f"a TIFF of the unknown photometric interpretation {page.photometric}")
    if page.photometric == _CMYK and page.tags.valueof(_INKS, 1) != 1:
        raise DecodeError("a TIFF of other inks than cyan, magenta, yellow and black")
    if page.dtype is None or page.dtype.kind not in "ub":
        kind = {"f": "floating-point", "i": f"signed {page.bitspersample}-bit"}
        name = kind.get("" if page.dtype is None else page.dtype.kind, f"{page.bitspersample}-bit")
        raise DecodeError(f"{name} pixels, whose range is not known")
    if page.imagedepth != 1 or page.samplesperpixel > _MOST_SAMPLES:
        raise DecodeError(f"a TIFF of {page.samplesperpixel} samples a pixel and the depth {page.imagedepth}")
    lacking = sum(not count for count in page.databytecounts)
    if lacking or len(page.dataoffsets) < np.prod(page.chunked):
        raise DecodeError(f"the TIFF is truncated: {lacking or 'some'} of its strips or tiles are missing")


def _require_ends(page: Any, file: IO[bytes]) -> None:
    """Raises DecodeError if a strip or tile in JPEG lacks its end marker: the decoder would fill the rest with grey."""
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        data = file.read(size)
        if data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN):
            raise DecodeError("the TIFF is truncated: a JPEG in it has no end marker")


def _several(pages: Any) -> bool:
    """Returns whether there is a second page that is neither a thumbnail nor a mask of the first."""
    try:
        return bool(pages.is_multipage) and not pages[1].subfiletype & (_REDUCED | _MASK)
    except Exception:  # only the second page is broken, not the photo
        return False


def _samples(page: Any) -> np.ndarray:
    """Returns the page's samples in the file's bit depth, as an array of shape (H, W, samples per pixel)."""
    found: np.ndarray = page.asarray(squeeze=False, maxworkers=1)  # (planes, 1, H, W, samples of a plane)
    planes, _, height, width, _ = found.shape
    return found[0, 0] if planes == 1 else np.moveaxis(found[..., 0], 0, -1).reshape(height, width, planes)


def _eight_bits(samples: np.ndarray, top: int) -> np.ndarray:
    """Scales `samples` to uint8 and rounds them. They range from 0 to `top`, which has at most 64 bits."""
    if top == 255:
        return np.ascontiguousarray(samples)
    shift = max(0, top.bit_length() - 16)
    found = np.empty(samples.shape, np.uint8)
    for start in range(0, len(samples), _ROWS):
        rows = (samples[start : start + _ROWS] >> shift).astype(np.uint32)
        found[start : start + _ROWS] = (rows * 255 + (top >> shift) // 2) // (top >> shift)
    return found


def _coloured(samples: np.ndarray, page: Any, top: int) -> np.ndarray:
    """Returns the colours as uint8, shape (H, W, colours). In grey, black is 0. In Lab, a neutral a or b is 128."""
    if page.photometric == _CIE_LAB:  # it stores a and b as signed numbers
        samples = samples ^ np.array([0, (top + 1) // 2, (top + 1) // 2], samples.dtype)
    if page.photometric in (_CIE_LAB, _ICC_LAB) and top > 255:
        shift = page.bitspersample - 8
        rounded: np.ndarray = np.minimum((samples >> shift) + ((samples >> (shift - 1)) & 1), 255).astype(np.uint8)
        return rounded
    found = _eight_bits(samples, top)
    return 255 - found if page.photometric == _WHITE_IS_ZERO else found


def _image(colours: np.ndarray, mode: str) -> Image.Image:
    height, width, _ = colours.shape
    if mode == "LAB":  # Pillow reads a and b as signed numbers
        colours = colours ^ np.array([0, 128, 128], np.uint8)
    image = Image.frombytes(mode, (width, height), colours.tobytes())
    return image.convert("RGB") if mode == "YCbCr" else image


def _by_palette(numbers: np.ndarray, colour_map: Any) -> Image.Image:
    colours = np.array(colour_map, np.uint32).reshape(3, -1).T
    if colours.max() > 255:  # a colour map has 16 bits per value, but some writers use only 8
        colours = (colours + 128) // 257
    return Image.fromarray(colours.astype(np.uint8)[np.minimum(numbers, len(colours) - 1)])


def _divided(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """Divides the premultiplied colours of `image` by `alpha`."""
    if image.mode not in _PREMULTIPLIED:
        return image  # in other modes, colours count as not premultiplied
    both = np.dstack([np.asarray(image), np.asarray(alpha)]).tobytes()
    multiplied = Image.frombytes(_PREMULTIPLIED[image.mode], image.size, both)
    return multiplied.convert(f"{image.mode}A").convert(image.mode)


def _by_libtiff(file: IO[bytes], orientation: int) -> Image.Image:
    """Decodes what tifffile cannot: YCbCr with subsampled chroma, and old JPEG (before TIFF 6.0's supplement)."""
    import imagecodecs  # noqa: PLC0415

    file.seek(0)
    image = Image.fromarray(imagecodecs.tiff_decode(file.read(), asrgb=True)).convert("RGB")
    flipped = _FLIPPED_BY_LIBTIFF.get(orientation)
    return image if flipped is None else image.transpose(flipped)
