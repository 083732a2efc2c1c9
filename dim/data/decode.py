"""Photos as the network wants them: any usual format → upright RGB, resized.

Only Pillow and NumPy are needed. Whatever is wrong with a photo comes out as one `DecodeError` that says why.
"""

import contextlib
import io
import math
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Literal

import numpy as np
from PIL import AvifImagePlugin, ExifTags, Image, UnidentifiedImageError

from dim.data import footprint

Resize = Literal["squash", "long-side"]
Box = tuple[float, float, float, float]

MIN_SIDE = 32  # VGG16 halves its input five times
# A JPEG decoded at a fraction of its size must stay this much larger than the output: at 3, one photo in 200 lost more
# than 0.002 of its descriptor's cosine, at 4 none lost 0.0002.
SCALED_MARGIN = 4
# Pillow's other formats are no photos, and some of them start other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # many photos are decoded at one time, and each thread takes memory


class DecodeError(Exception):
    """A photo that cannot be decoded; the message is the reason."""


@dataclass(frozen=True)
class Limits:
    """What a photo may need at most: `pixels` when decoded, `bytes` in its file."""

    pixels: int = 178_000_000
    bytes: int = 256 * 2**20

    @property
    def memory(self) -> int:
        """The bytes that its decoding may take."""
        return footprint.most(self.pixels, self.bytes)


LIMITS = Limits()


@dataclass(frozen=True)
class Decoded:
    """`pixels`: uint8 RGB (H, W, 3). `width`, `height`: of the upright full photo, in pixels."""

    pixels: np.ndarray
    width: int
    height: int


class _Silence:
    """Ignores warnings while any thread is inside: between threads, `warnings.catch_warnings` restores wrongly."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)


_silence = _Silence()


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
    # On a broken file, Pillow's plugins warn, and raise exceptions of almost any type.
    try:
        with _silence:
            yield
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(" ".join(str(error).split()) or type(error).__name__) from error


def decode(
    content: bytes, size: int, resize: Resize, box: Box | None = None, *, scaled: bool = False, limits: Limits = LIMITS
) -> Decoded:
    """Decodes the photo whose file holds `content` and resizes it by Pillow's BILINEAR, as `output_size` says.

    EXIF orientation is applied first. `box` (x1, y1, x2, y2), in pixels of the upright photo, is rounded, clipped to
    the photo and cropped before resizing. Alpha is laid on white, 16-bit grey divided by 257, and of an animation the
    first frame taken. `scaled`: a JPEG without a box is decoded at a half, a quarter or an eighth of its size, where
    that is still `SCALED_MARGIN` times the output.

    Raises DecodeError for anything wrong: unknown, broken, truncated, over the limits, empty box.
    """
    check_size(len(content), limits)
    with _guarded():
        image = _opened(io.BytesIO(content), limits)
        full = image.size
        if scaled and box is None:
            width, height = output_size(full, full, size, resize)
            image.draft(None, (SCALED_MARGIN * width, SCALED_MARGIN * height))  # other formats than JPEG ignore it
        photo, orientation = _rgb(image), _orientation(image)
        if orientation in _UPRIGHT:
            photo = photo.transpose(_UPRIGHT[orientation])
            full = full[::-1] if orientation in _SIDEWAYS else full
        region = photo if box is None else _cropped(photo, box)
        shape = output_size(full if box is None else region.size, full, size, resize)
        pixels = np.array(region.resize(shape, Image.Resampling.BILINEAR))
    return Decoded(pixels, *full)


def needed(content: bytes, size: int, resize: Resize, *_: object, limits: Limits = LIMITS, **__: object) -> int:
    """The bytes of memory that `decode` takes at most, called with the same, told from the header.

    Raises DecodeError where no photo within the limits begins there.
    """
    check_size(len(content), limits)
    with _guarded():
        image = _opened(io.BytesIO(content), limits)
        output = math.prod(output_size(image.size, image.size, size, resize))
        return footprint.estimated(image, len(content), output)


def check_size(size: int, limits: Limits = LIMITS) -> None:
    """Raises DecodeError where a photo's file of `size` bytes is over the limit."""
    if size > limits.bytes:
        raise DecodeError(f"the file has {size:,} bytes; the limit is {limits.bytes:,}")


def check_header(file: IO[bytes], limits: Limits = LIMITS) -> None:
    """Raises DecodeError where the seekable `file` does not open as a photo within `limits`; decodes no pixel."""
    with _guarded():
        _opened(file, limits)


def output_size(region: tuple[int, int], photo: tuple[int, int], size: int, resize: Resize) -> tuple[int, int]:
    """(width, height) that `region` of `photo`, both (width, height), is resized to.

    squash: both sides to `size`, so that all photos go through the network together. long-side: by the factor that
    brings the long side of the *photo* to `size`, never upsampled. No side is left under 32.
    """
    if resize == "squash":
        width, height = size, size
    else:
        scale = min(1.0, size / max(photo))
        width, height = (round(side * scale) for side in region)
    return max(width, MIN_SIDE), max(height, MIN_SIDE)


def _opened(file: IO[bytes], limits: Limits) -> Image.Image:
    # Pillow refuses what has more than twice this. Ours is the limit that counts, so Pillow's must not be lower.
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limits.pixels // 2 + 1)
    try:
        image = Image.open(file, formats=_FORMATS)
    except UnidentifiedImageError as error:
        file.seek(0)
        start = file.read(16)
        reason = f"no photo in a known format: it begins with {start!r}" if start else "the file is empty"
        raise DecodeError(reason) from error
    width, height = image.size
    if width * height > limits.pixels:
        raise DecodeError(f"the photo has {width:,} × {height:,} pixels; the limit is {limits.pixels:,}")
    _require_room(image, file, limits)
    return image


def _require_room(image: Image.Image, file: IO[bytes], limits: Limits) -> None:
    place = file.tell()
    length = file.seek(0, io.SEEK_END)
    file.seek(place)
    memory = footprint.estimated(image, length)
    if memory > limits.memory:
        width, height = image.size
        raise DecodeError(
            f"to decode {image.format} of {width:,} × {height:,} pixels may take {memory / 2**30:,.1f} GiB of memory; "
            f"the limit is {limits.memory / 2**30:,.1f} GiB"
        )


def _rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode == "F":
        raise DecodeError("floating-point pixels, whose range is not known")
    if image.mode.startswith("I"):
        return Image.fromarray(_from_16_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _from_16_bit(grey: np.ndarray) -> np.ndarray:
    # Pillow's own conversion clips at 255. 65535 / 257 = 255 exactly.
    if grey.min() < 0 or grey.max() > 65535:
        raise DecodeError("32-bit pixels, whose range is not known")
    return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
        return orientation if orientation in _UPRIGHT else 1
    except Exception:  # a photo with broken EXIF is still a photo
        return 1


def _cropped(photo: Image.Image, box: Box) -> Image.Image:
    x1, y1, x2, y2 = (round(value) for value in box)
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, photo.width), min(y2, photo.height)
    if right <= left or bottom <= top:
        raise DecodeError(f"box {box} holds no pixel of the photo's {photo.width} × {photo.height}")
    return photo.crop((left, top, right, bottom))
