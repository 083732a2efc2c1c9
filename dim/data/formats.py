"""File formats: chooses the decoder that opens a photo, or says why no decoder can open it.

tifffile opens TIFF (`dim.data.tiff`), and Pillow opens the other formats (`PillowPhoto`). `open_photo` chooses by the
first bytes of a file and ignores the file's name.
"""

import io
from typing import IO, Protocol

import numpy as np
from PIL import AvifImagePlugin, ExifTags, Image, PngImagePlugin

from dim.data import file_structure, footprint, tiff
from dim.data.colour import LARGEST
from dim.data.limits import DecodeError, Limits, check_pixels, check_size

# The formats that Pillow may open. Its other formats do not hold photos, and some of their plugins start programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}  # brands
# The first bytes of camera raw files that `open_tiff` would not notice. Only the last, of Canon's files, is TIFF.
_RAW = (b"FUJIFILMCCD-RAW", b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"FOVb", b"\0MRM", b"II*\0\x10\0\0\0CR")
_START = 4096  # bytes; enough to recognise a format
_PNG_GREY_ALPHA = 4  # a colour type

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # photos are decoded in parallel already, and each thread takes memory


class OpenedPhoto(Protocol):
    """A photo whose header has been read."""

    @property
    def format(self) -> str:
        """The format's name, for messages."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels as stored, before `orientation` is applied."""

    @property
    def orientation(self) -> int:
        """The value of EXIF's orientation tag, 1 to 8; 1 is upright."""

    @property
    def profile(self) -> bytes | None:
        """The ICC profile of the colours, or None."""

    @property
    def several(self) -> bool:
        """Whether the file holds more than one frame or page. Only the first is decoded."""

    def memory(self, length: int) -> int:
        """Returns an upper bound of the bytes of memory for decoding to upright RGB; the file has `length` bytes."""

    def draft(self, size: tuple[int, int]) -> None:
        """Lets `load` return the photo at 1/2, 1/4 or 1/8 of its size, but not below `size`, if the format allows."""

    def load(self) -> tuple[Image.Image, Image.Image | None]:
        """Decodes the pixels. Returns the colours (mode L, RGB, CMYK or LAB) and the alpha channel (mode L) or None."""


def open_photo(file: IO[bytes], limits: Limits) -> OpenedPhoto:
    """Opens the photo in the seekable `file` without decoding a pixel.

    Raises DecodeError if the file is not a photo that dim can decode, or is over the limits.
    """
    start = file.read(_START)
    file.seek(0)
    if not start:
        raise DecodeError("the file is empty")
    brands = file_structure.brands(start)
    if start.startswith(_RAW) or b"crx " in brands:
        raise DecodeError(tiff.RAW)
    if start.startswith(tiff.MAGIC):
        try:
            return tiff.open_tiff(file, limits)
        except DecodeError:
            raise
        except Exception as error:
            raise DecodeError(_not_decoded("TIFF", error)) from error
    if brands and not brands & file_structure.AVIF_BRANDS and (brands & _HEIC or b"hvc1" in start):
        raise DecodeError("an HEIC photo, which dim can't decode; convert it to JPEG")
    # Pillow's own limit would already refuse a photo in `Image.open`. `check_pixels` below applies dim's limit.
    Image.MAX_IMAGE_PIXELS = None
    PngImagePlugin.MAX_TEXT_CHUNK = LARGEST  # Pillow's limit of 1 MB refuses some large profiles
    crop = None
    if brands & file_structure.AVIF_BRANDS or (brands and b"av01" in start):
        content = file.read(limits.bytes + 1)
        check_size(len(content), limits)
        file, crop = io.BytesIO(file_structure.avif_for_pillow(content)), file_structure.avif_crop(content)
    try:
        image = Image.open(file, formats=_FORMATS)
    except Exception as error:  # a broken file raises almost any type
        raise DecodeError(_reason(file, start)) from error
    photo = PillowPhoto(file, image, start, crop)
    check_pixels(*photo.size, limits)
    return photo


def _reason(file: IO[bytes], start: bytes) -> str:
    """Returns why Pillow cannot open the file. Pillow drops the error of its plugin, so this calls the plugin again."""
    file.seek(0)
    prefix = file.read(16)
    for name in _FORMATS:
        factory, accepts = Image.OPEN[name]
        if accepts and accepts(prefix):
            file.seek(0)
            try:
                factory(file, "")
            except Exception as error:
                return _not_decoded(name, error)
    return f"no photo in a known format: it begins with {start[:16]!r}"


def _not_decoded(name: str, error: Exception) -> str:
    return f"broken, or a kind of {name} that dim can't decode: {str(error) or type(error).__name__}"


class PillowPhoto:
    """A photo that Pillow has opened as `image`. `start` has the first bytes, and `crop` the aperture of an AVIF."""

    def __init__(self, file: IO[bytes], image: Image.Image, start: bytes, crop: file_structure.Crop | None) -> None:
        self._file = file
        self.image = image
        self._start = start
        self._crop = crop
        self._draft: tuple[int, int] | None = None
        self.format = str(image.format)
        self.size = image.size if crop is None else (crop[2] - crop[0], crop[3] - crop[1])
        self.profile: bytes | None = image.info.get("icc_profile")

    @property
    def orientation(self) -> int:
        """The orientation from EXIF, or from AVIF's own property; 1 (upright) if there is none."""
        try:
            return int(self.image.getexif().get(ExifTags.Base.Orientation, 1))
        except Exception:  # a photo with broken EXIF is still a photo
            return 1

    @property
    def several(self) -> bool:
        """Whether the file holds more than one frame. Thumbnails do not count."""
        try:
            if self.image.format == "MPO":
                entries = self.image.mpinfo[0xB002]  # type: ignore[attr-defined]
                kinds = [entry["Attribute"]["MPType"] for entry in entries]
                return sum("Thumbnail" not in kind for kind in kinds) > 1
            return bool(getattr(self.image, "is_animated", False))
        except Exception:  # only the index of frames is broken, not the photo
            return False

    def memory(self, length: int) -> int:
        """See `OpenedPhoto`."""
        return footprint.of_image(self.image, length)

    def draft(self, size: tuple[int, int]) -> None:
        """See `OpenedPhoto`. Only JPEG supports it."""
        self._draft = size
        self.image.draft(None, size)

    def load(self) -> tuple[Image.Image, Image.Image | None]:
        """See `OpenedPhoto`. Raises any exception that Pillow raises."""
        self.image = image = self._loaded()
        depth, kind = (self._start[24], self._start[25]) if image.format == "PNG" else (8, None)
        _fit_key(image, depth)
        colours, alpha = _colours(image), _alpha(image)
        if kind == _PNG_GREY_ALPHA:
            colours = image.getchannel(0)  # Pillow opens 16-bit grey with alpha as RGBA
        if self._crop is None:
            return colours, alpha
        return colours.crop(self._crop), alpha and alpha.crop(self._crop)

    def _loaded(self) -> Image.Image:
        """Returns the image with its pixels decoded. Adds the end marker if that is all that a JPEG lacks."""
        try:
            self.image.load()
            return self.image
        except OSError:
            if self.image.format not in ("JPEG", "MPO"):  # MPO is a file of several JPEGs
                raise
            self._file.seek(0)
            whole = file_structure.completed_jpeg(self._file.read())
            if whole is None:
                raise
        image = Image.open(io.BytesIO(whole), formats=("JPEG",))
        if self._draft is not None:
            image.draft(None, self._draft)
        image.load()
        return image


def _fit_key(image: Image.Image, depth: int) -> None:
    """Scales the transparent colour of a PNG (tRNS) from `depth` bits to 8 bits, as Pillow has scaled the pixels."""
    key = image.info.get("transparency")
    if image.mode == "L" and depth < 8 and isinstance(key, int):
        image.info["transparency"] = key * 255 // (2**depth - 1)
    elif image.mode == "RGB" and depth == 16 and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)  # Pillow keeps the high bytes


def _colours(image: Image.Image) -> Image.Image:
    """Returns `image` without alpha, in the mode L, RGB, CMYK or LAB."""
    if image.mode == "F":
        raise DecodeError("floating-point pixels, whose range is not known")
    if image.mode.startswith("I"):
        return Image.fromarray(_from_16_bit(np.asarray(image)))
    if image.mode in ("RGB", "L", "CMYK", "LAB"):
        return image
    if image.mode in ("1", "LA"):
        return image.convert("L")
    return (image.convert("RGBA") if image.has_transparency_data else image).convert("RGB")


def _from_16_bit(grey: np.ndarray) -> np.ndarray:
    # Pillow's own conversion clips at 255. Dividing by 257 maps 65535 to 255 exactly.
    if grey.min() < 0 or grey.max() > 65535:
        raise DecodeError("32-bit pixels, whose range is not known")
    return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _alpha(image: Image.Image) -> Image.Image | None:
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I"):
        return Image.fromarray(np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8))
    return image.convert("RGBA").getchannel("A")
