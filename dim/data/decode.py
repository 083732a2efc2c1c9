"""Decoding: the bytes of a photo in any usual format → upright, resized sRGB pixels for the network.

`decode` does all steps. `prepared` stops after the header, so that the caller knows how much memory decoding will take.
If a photo has a fault, `DecodeError` gives the reason. `dim.data.isolated` decodes in a separate process, which
protects the job from photos that crash or hang a decoder.
"""

import contextlib
import io
import math
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
from PIL import Image

from dim.data import footprint, formats
from dim.data.colour import as_srgb
from dim.data.config import Resize
from dim.data.formats import OpenedPhoto
from dim.data.limits import LIMITS, DecodeError, Limits, allowance, check_size

Box = tuple[float, float, float, float]  # (x1, y1, x2, y2) in pixels

MIN_SIDE = 32  # pixels; VGG16 halves the sides of a photo five times
# A JPEG is decoded at a fraction of its size only if the result is at least this many times as wide and as high as the
# output. With 3, one descriptor in 200 moved by more than 0.002 in cosine. With 4, each moved by less than 0.0002.
SCALED_MARGIN = 4

# EXIF's orientation tag → the operation that turns the stored picture upright. The last four swap width and height.
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


@dataclass(frozen=True)
class Decoded:
    """A decoded photo. `pixels` are uint8 RGB of shape (H, W, 3), cropped and resized.

    `width` and `height` are those of the whole upright photo. `several` is true if the file has more frames or pages.
    """

    pixels: np.ndarray
    width: int
    height: int
    several: bool = False


def decode(
    content: bytes, size: int, resize: Resize, box: Box | None = None, *, scaled: bool = False, limits: Limits = LIMITS
) -> Decoded:
    """Decodes a photo, applies its colour profile and orientation, crops it to `box`, and resizes it (BILINEAR).

    Transparent parts become white, and 16-bit grey is divided by 257. If there are several frames or pages, the first
    is decoded. `output_size` explains `size` and `resize`. `box` is (x1, y1, x2, y2) in pixels of the upright photo; it
    is rounded and clipped to the photo. If `scaled` is true and there is no box, a JPEG is decoded at a half, a quarter
    or an eighth of its size, but not below `SCALED_MARGIN` times the output. This is faster; pixels differ slightly.

    Raises:
        DecodeError: The file has an unknown format, or is broken or truncated; the photo is over the limits; or the box
            is outside the photo.
    """
    return prepared(content, size, resize, box, scaled=scaled, limits=limits).decode()


@dataclass(frozen=True)
class Undecoded:
    """A photo whose header has been read, and the arguments for decoding it.

    `memory` is an upper bound of the bytes of memory that decoding takes.
    """

    photo: OpenedPhoto
    size: int
    resize: Resize
    box: Box | None
    scaled: bool
    memory: int

    def decode(self) -> Decoded:
        """Decodes the photo as the function `decode` does. May be called only once."""
        with _guarded():
            photo = self.photo
            full = photo.size
            if self.scaled and self.box is None:
                width, height = output_size(full, full, self.size, self.resize)
                photo.draft((SCALED_MARGIN * width, SCALED_MARGIN * height))
            image, alpha = photo.load()
            image = as_srgb(image, photo.profile)
            if alpha is not None:
                image = _laid_on_white(image, alpha)
            orientation = photo.orientation
            if orientation in _UPRIGHT:
                image = image.transpose(_UPRIGHT[orientation])
                full = full[::-1] if orientation in _SIDEWAYS else full
            region = image if self.box is None else _cropped(image, self.box)
            shape = output_size(full if self.box is None else region.size, full, self.size, self.resize)
            pixels = np.array(region.resize(shape, Image.Resampling.BILINEAR))
            return Decoded(pixels, *full, several=photo.several)


def prepared(
    content: bytes, size: int, resize: Resize, box: Box | None = None, *, scaled: bool = False, limits: Limits = LIMITS
) -> Undecoded:
    """Does the first step of `decode`: reads the header. Takes the same arguments, and raises the same error."""
    check_size(len(content), limits)
    with _guarded():
        photo = _opened(io.BytesIO(content), limits)
        output = math.prod(output_size(photo.size, photo.size, size, resize))
        memory = photo.memory(len(content)) + footprint.OUTPUT * output
        return Undecoded(photo, size, resize, box, scaled, memory)


def decode_image(image: Image.Image, size: int, resize: Resize) -> np.ndarray:
    """Does the steps of `decode` that follow the decoding of a file, for an `image` that Pillow has opened or made.

    Returns the pixels, uint8 RGB (H, W, 3). Raises DecodeError if the image can't be loaded or has an unknown mode.
    """
    with _guarded():
        photo = formats.PillowPhoto(io.BytesIO(), image.copy(), b"", None)
    return Undecoded(photo, size, resize, None, scaled=False, memory=0).decode().pixels


def check_header(file: IO[bytes], limits: Limits = LIMITS) -> None:
    """Raises DecodeError if `file` (seekable) has no sound header or is over `limits`. Decodes no pixel."""
    with _guarded():
        _opened(file, limits)


def output_size(region: tuple[int, int], photo: tuple[int, int], size: int, resize: Resize) -> tuple[int, int]:
    """Returns the (width, height) to which `region`, a part of `photo`, is resized. Both are (width, height), too.

    If `resize` is squash, both sides become `size`, so that all photos fit in one batch. If it is long-side, `region`
    is scaled by the factor that makes the long side of the whole `photo` equal to `size`, but it is never enlarged.
    In both cases, no side becomes shorter than 32 pixels.
    """
    if resize == "squash":
        width, height = size, size
    else:
        scale = min(1.0, size / max(photo))
        width, height = (round(side * scale) for side in region)
    return max(width, MIN_SIDE), max(height, MIN_SIDE)


def _opened(file: IO[bytes], limits: Limits) -> OpenedPhoto:
    """Reads the header of the photo in `file`. Raises DecodeError if the photo cannot be decoded within `limits`."""
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    photo = formats.open_photo(file, limits)
    memory = photo.memory(length)
    if memory > limits.memory:
        width, height = photo.size
        raise DecodeError(
            f"decoding {photo.format} of {width:,} × {height:,} pixels may take {memory / 2**30:,.1f} GiB of memory; "
            f"the limit is {limits.memory / 2**30:,.1f} GiB; {allowance(limits.megapixels_for(memory))}"
        )
    return photo


def _laid_on_white(image: Image.Image, alpha: Image.Image) -> Image.Image:
    image.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def clipped(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Returns the part of a photo of `width` × `height` pixels that `box` covers, as `decode` crops it."""
    x1, y1, x2, y2 = (round(value) for value in box)
    return max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)


def _cropped(photo: Image.Image, box: Box) -> Image.Image:
    left, top, right, bottom = clipped(box, *photo.size)
    if right <= left or bottom <= top:
        raise DecodeError(f"box {box} holds no pixel of the photo's {photo.width} × {photo.height}")
    return photo.crop((left, top, right, bottom))


class _Silence:
    """A context manager that ignores warnings while any thread is in its block.

    `warnings.catch_warnings` alone is not thread-safe: if two blocks overlap, each restores the other's filters.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caught = warnings.catch_warnings(action="ignore")
                self._caught.__enter__()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)


_silence = _Silence()


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
    """Turns every exception into DecodeError. If a file is broken, Pillow raises almost any type, and warns."""
    try:
        with _silence:
            yield
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(" ".join(str(error).split()) or type(error).__name__) from error
