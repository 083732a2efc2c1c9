"""The photos of a page: read in threads while the page is built, embedded once each, and shrunk to limit its size."""

import base64
import io
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dim.app.progress import Progress
from dim.data import isolated, photos
from dim.data.decode import Box, clipped
from dim.data.limits import DecodeError
from dim.errors import UserError
from dim.report.markup import Html, element

# (longest side in pixels, JPEG quality), best first. All photos of a page use the first pair with which they fit.
SIZES = ((224, 80), (176, 75), (144, 70), (112, 65), (88, 60), (64, 50))
_FULL = 2**31  # a size larger than any photo, so that the photo is decoded at its full size
_THREADS = min(16, 4 * (os.cpu_count() or 1))  # up to 4 per core, as threads also wait for storage


@dataclass(frozen=True)
class PagePhoto:
    """A photo, or a part of it, to show."""

    path: str | None  # path or URI; None if unknown
    box: Box | None = None  # the part to show, in pixels; None for the whole photo


class PagePhotos:
    """The distinct photos of a page, numbered in the order in which they are first used."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="thumbnails")
        self._found: dict[PagePhoto, Future[Thumbnail | str]] = {}
        self._numbers: dict[PagePhoto, int] = {}
        self._frames: dict[tuple[PagePhoto, Box], str] = {}  # the id of the symbol of each frame

    def __len__(self) -> int:
        return len(self._found)

    def symbol(self, photo: PagePhoto) -> str:
        """The id of the SVG symbol of `photo`. The first call for a photo makes a thread read it."""
        if photo not in self._found:
            self._numbers[photo] = len(self._found)
            self._found[photo] = self._threads.submit(_thumbnail, photo)
        return f"p{self._numbers[photo]}"

    def picture(self, photo: PagePhoto, description: str, framed: Box | None = None) -> Html:
        """A square picture of `photo`; screen readers read out the `description`.

        The part `framed`, in pixels of the whole photo, gets a frame.
        """
        uses = [element("use", href=f"#{self.symbol(photo)}")]
        if framed:
            frame = self._frames.setdefault((photo, framed), f"f{len(self._frames)}")
            uses.append(element("use", href=f"#{frame}"))
        return element("svg", element("title", description), uses, class_="photo", role="img")

    def unreadable(self) -> dict[str, str]:
        """Maps the path of each unreadable photo to the reason. Waits until all photos have been read."""
        reasons: dict[str, str] = {}
        progress = Progress("reading photos for the page", len(self._found), "photos", errors=True)
        for photo, future in self._found.items():
            found = future.result()
            progress.add(errors=isinstance(found, str))
            if isinstance(found, str) and photo.path:
                reasons[photo.path] = found
        return reasons

    def symbols(self, limit: int) -> Html:
        """All photos as SVG symbols, at the first of `SIZES` that needs at most `limit` characters, or at the last."""
        thumbnails = {photo: found.result() for photo, found in list(self._found.items())}
        images = {self.symbol(photo): found for photo, found in thumbnails.items()}
        frames = [_frame(symbol, thumbnails[photo], photo, box) for (photo, box), symbol in self._frames.items()]
        for side, quality in SIZES:
            symbols = element("svg", _symbols(images, side, quality), frames, class_="symbols", aria_hidden="true")
            if len(symbols) <= limit:
                break
        return symbols


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of a photo, and the width and height of the whole photo in pixels."""

    image: Image.Image
    width: int
    height: int


def _thumbnail(photo: PagePhoto) -> Thumbnail | str:
    """The photo at the largest of `SIZES`, or the reason why it can't be shown."""
    if photo.path is None:
        return "its path is not known"
    largest = SIZES[0][0]
    size = largest if photo.box is None else _FULL  # a small box of a photo scaled down first would have few pixels
    try:
        found = isolated.decode(photos.read(photo.path), size, "long-side", photo.box, scaled=True)
    except FileNotFoundError:
        return photos.MISSING
    except (DecodeError, OSError, UserError) as error:
        return " ".join(str(error).split())
    image = Image.fromarray(np.ascontiguousarray(found.pixels))
    image.thumbnail((largest, largest))
    return Thumbnail(image, found.width, found.height)


def _symbols(images: dict[str, Thumbnail | str], side: int, quality: int) -> Iterator[Html]:
    for symbol, image in images.items():
        if isinstance(image, str):
            yield _placeholder(symbol)
            continue
        small = image.image.copy()
        small.thumbnail((side, side))
        width, height = small.size
        picture = element("image", width=width, height=height, href=_data_uri(small, quality))
        yield element("symbol", picture, id=symbol, viewBox=f"0 0 {width} {height}")


def _frame(symbol: str, found: Thumbnail | str, photo: PagePhoto, box: Box) -> Html | None:
    """The symbol of a frame around the part `box` of `photo`. It lies over the photo's symbol, as it has its shape."""
    if isinstance(found, str):
        return None
    left, top, right, bottom = clipped(photo.box or (0, 0, found.width, found.height), found.width, found.height)
    x1, y1, x2, y2 = box
    rectangle = element("rect", x=round(x1 - left), y=round(y1 - top), width=round(x2 - x1), height=round(y2 - y1),
                        class_="found")  # fmt: skip
    return element("symbol", rectangle, id=symbol, viewBox=f"0 0 {right - left} {bottom - top}")


def _data_uri(image: Image.Image, quality: int) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _placeholder(symbol: str) -> Html:
    box = element("rect", width=100, height=100, class_="missing")
    line = element("path", d="M30 62 44 46 54 56 62 49 72 62Z M30 34H72V66H30Z", class_="missing-line")
    text = element("text", "no photo", x=50, y=84, class_="missing-text")
    return element("symbol", box, line, text, id=symbol, viewBox="0 0 100 100")
