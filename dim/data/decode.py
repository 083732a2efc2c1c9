"""Photos as the network wants them: any usual format → upright sRGB, resized.

Whatever is wrong with a photo comes out as one `DecodeError` that says why.
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
from PIL import Image

from dim.data import footprint, formats
from dim.data.colour import as_srgb
from dim.data.formats import OpenedPhoto
from dim.data.limits import LIMITS, DecodeError, Limits, allowance, check_size

__all__ = [
    "Box",
    "DecodeError",
    "Decoded",
    "Limits",
    "Resize",
    "Undecoded",
    "check_header",
    "decode",
    "output_size",
    "prepared",
]

Resize = Literal["squash", "long-side"]
Box = tuple[float, float, float, float]

MIN_SIDE = 32  # VGG16 halves its input five times
# A JPEG decoded at a fraction of its size must stay this much larger than the output: at 3, one photo in 200 lost more
# than 0.002 of its descriptor's cosine, at 4 none lost 0.0002.
SCALED_MARGIN = 4

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
    """`pixels`: uint8 RGB (H, W, 3). `width`, `height`: of the upright full photo, in pixels. `several`: whether the
    file holds further frames or pages.
    """

    pixels: np.ndarray
    width: int
    height: int
    several: bool = False


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


@dataclass(frozen=True)
class Undecoded:
    """A photo whose header has been read, and what is asked of it. `memory`: the bytes that `decode` takes at most."""

    photo: OpenedPhoto
    size: int
    resize: Resize
    box: Box | None
    scaled: bool
    memory: int

    def decode(self) -> Decoded:
        """The photo, as the function `decode` says; it can be asked for once."""
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
    """What `decode` begins with: the header. Raises DecodeError where no photo within the limits begins there."""
    check_size(len(content), limits)
    with _guarded():
        photo = _opened(io.BytesIO(content), limits)
        output = math.prod(output_size(photo.size, photo.size, size, resize))
        memory = photo.memory(len(content)) + footprint.OUTPUT * output
        return Undecoded(photo, size, resize, box, scaled, memory)


def decode(
    content: bytes, size: int, resize: Resize, box: Box | None = None, *, scaled: bool = False, limits: Limits = LIMITS
) -> Decoded:
    """Decodes the photo whose file holds `content` and resizes it by Pillow's BILINEAR, as `output_size` says.

    Colours are brought to sRGB by the photo's profile, and the orientation is applied, first. `box` (x1, y1, x2, y2),
    in pixels of the upright photo, is rounded, clipped to the photo and cropped before resizing. Alpha is laid on
    white, 16-bit grey divided by 257, and of several frames or pages the first taken. `scaled`: a JPEG without a box
    is decoded at a half, a quarter or an eighth of its size, where that is still `SCALED_MARGIN` times the output.

    Raises DecodeError for anything wrong: unknown, broken, truncated, over the limits, empty box.
    """
    return prepared(content, size, resize, box, scaled=scaled, limits=limits).decode()


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


def _opened(file: IO[bytes], limits: Limits) -> OpenedPhoto:
    """The photo in `file`, by its header. Raises DecodeError for what will not be decoded."""
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    photo = formats.opened(file, limits)
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


def _cropped(photo: Image.Image, box: Box) -> Image.Image:
    x1, y1, x2, y2 = (round(value) for value in box)
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, photo.width), min(y2, photo.height)
    if right <= left or bottom <= top:
        raise DecodeError(f"box {box} holds no pixel of the photo's {photo.width} × {photo.height}")
    return photo.crop((left, top, right, bottom))
