"""The photos of a page: read by threads while the page is put together, each embedded once, as small as it must be."""

import base64
import io
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dim.app.progress import Progress
from dim.data import isolated
from dim.data import photos as stored
from dim.data.decode import Box, DecodeError
from dim.errors import UserError
from dim.report.html import Html, element

# Longest side in pixels and JPEG quality, from best to smallest: the first at which all photos fit is taken.
SIZES = ((224, 80), (176, 75), (144, 70), (112, 65), (88, 60), (64, 50))
_FULL = 2**31  # a size that no photo has: decoded as it is
_THREADS = min(16, 4 * (os.cpu_count() or 1))  # storage is waited for, too


@dataclass(frozen=True)
class Photo:
    """Where a photo lies, a path or URI (None: not known), and the box of it that is shown, in pixels."""

    path: str | None
    box: Box | None = None


class Photos:
    """The distinct photos that a page shows."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="thumbnails")
        self._found: dict[Photo, Future[Image.Image | str]] = {}
        self._numbers: dict[Photo, int] = {}

    def __len__(self) -> int:
        return len(self._found)

    def symbol(self, photo: Photo) -> str:
        """The id of the SVG symbol that holds `photo`; its reading starts."""
        if photo not in self._found:
            self._numbers[photo] = len(self._found)
            self._found[photo] = self._threads.submit(_thumbnail, photo)
        return f"p{self._numbers[photo]}"

    def picture(self, photo: Photo, description: str) -> Html:
        """A square picture of `photo`; `description` says to those who don't see it what it shows."""
        return element(
            "svg",
            element("title", description),
            element("use", href=f"#{self.symbol(photo)}"),
            class_="photo",
            role="img",
        )

    def unreadable(self) -> dict[str, str]:
        """The path of each photo that could not be read, and why not. Waits until all are read."""
        reasons: dict[str, str] = {}
        progress = Progress("reading photos for the page", len(self._found), "photos", errors=True)
        for photo, future in self._found.items():
            found = future.result()
            progress.add(errors=isinstance(found, str))
            if isinstance(found, str) and photo.path:
                reasons[photo.path] = found
        return reasons

    def symbols(self, limit: int) -> Html:
        """All photos as SVG symbols, of `limit` characters or less if the smallest size allows it."""
        images = {self.symbol(photo): found.result() for photo, found in list(self._found.items())}
        for side, quality in SIZES:
            symbols = element("svg", _symbols(images, side, quality), class_="symbols", aria_hidden="true")
            if len(symbols) <= limit:
                break
        return symbols


def _thumbnail(photo: Photo) -> Image.Image | str:
    """The photo, or why it can't be shown."""
    if photo.path is None:
        return "not known where it lies"
    largest = SIZES[0][0]
    try:
        content = stored.read(photo.path)
        # A box is scaled as its photo is, which may leave little of a small one: it is cut out at full size.
        size = largest if photo.box is None else _FULL
        found = isolated.decode(content, size, "long-side", photo.box, scaled=True)
    except FileNotFoundError:
        return stored.MISSING
    except (DecodeError, OSError, UserError) as error:
        return " ".join(str(error).split())
    image = Image.fromarray(np.ascontiguousarray(found.pixels))
    image.thumbnail((largest, largest))
    return image


def _symbols(images: dict[str, Image.Image | str], side: int, quality: int) -> Iterator[Html]:
    for name, image in images.items():
        if isinstance(image, str):
            yield _placeholder(name)
            continue
        small = image.copy()
        small.thumbnail((side, side))
        width, height = small.size
        picture = element("image", width=width, height=height, href=_data_uri(small, quality))
        yield element("symbol", picture, id=name, viewBox=f"0 0 {width} {height}")


def _data_uri(image: Image.Image, quality: int) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _placeholder(name: str) -> Html:
    box = element("rect", width=100, height=100, class_="missing")
    line = element("path", d="M30 62 44 46 54 56 62 49 72 62Z M30 34H72V66H30Z", class_="missing-line")
    text = element("text", "no photo", x=50, y=84, class_="missing-text")
    return element("symbol", box, line, text, id=name, viewBox="0 0 100 100")
