"""A page as one HTML file that contains style, scripts and photos, and loads no other file.

* `element` makes markup and escapes all text in it, so that a name can't inject markup.
* `PagePhotos` reads photos in threads while the page is built, embeds each once, and shrinks them to limit the size.
* `Page` collects sections and writes the file. Its content security policy allows only its own style and scripts.
"""

import base64
import hashlib
import html
import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import TypeAlias

import numpy as np
from PIL import Image

import dim
from dim.app.progress import Progress, step
from dim.data import isolated, photos
from dim.data.decode import Box
from dim.data.limits import DecodeError
from dim.errors import UserError
from dim.io import files, uris

Child: TypeAlias = str | int | float | Iterable["Child"] | None
Attribute: TypeAlias = str | int | float | bool | None

_VOID = {"br", "hr", "input", "meta"}


class Html(str):
    """Markup from `element` or `fragment`, perhaps joined. Any other `str` is plain text and is escaped when shown."""


def element(tag: str, *children: Child, **attributes: Attribute) -> Html:
    """Makes the element `<tag>`. A child is text, a number, markup, None or an iterable of children. Text is escaped.

    `class_="a"` becomes the attribute class="a", and `data_value=1` becomes data-value="1". An attribute that
    is True is written without a value. An attribute that is None or False is left out.
    """
    opening = f"<{tag}{''.join(_attribute(name, value) for name, value in attributes.items())}>"
    return Html(opening if tag in _VOID else f"{opening}{fragment(children)}</{tag}>")


def fragment(child: Child) -> Html:
    """Turns `child` into markup. Text that isn't markup is escaped."""
    if child is None:
        return Html("")
    if isinstance(child, Html):
        return child
    if isinstance(child, str | int | float):
        return Html(html.escape(str(child)))
    return Html("".join(map(fragment, child)))


def _attribute(name: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'


def user_text(text: str | None) -> Html:
    """A label, an id or a path, isolated by `<bdi>` so that right-to-left script in it doesn't reorder other text."""
    return element("span", "none", class_="none") if text is None else element("bdi", text)


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
        self._found: dict[PagePhoto, Future[Image.Image | str]] = {}
        self._numbers: dict[PagePhoto, int] = {}

    def __len__(self) -> int:
        return len(self._found)

    def symbol(self, photo: PagePhoto) -> str:
        """The id of the SVG symbol of `photo`. The first call for a photo makes a thread read it."""
        if photo not in self._found:
            self._numbers[photo] = len(self._found)
            self._found[photo] = self._threads.submit(_thumbnail, photo)
        return f"p{self._numbers[photo]}"

    def picture(self, photo: PagePhoto, description: str) -> Html:
        """A square picture of `photo`; screen readers read out the `description`."""
        use = element("use", href=f"#{self.symbol(photo)}")
        return element("svg", element("title", description), use, class_="photo", role="img")

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
        images = {self.symbol(photo): found.result() for photo, found in list(self._found.items())}
        for side, quality in SIZES:
            symbols = element("svg", _symbols(images, side, quality), class_="symbols", aria_hidden="true")
            if len(symbols) <= limit:
                break
        return symbols


def _thumbnail(photo: PagePhoto) -> Image.Image | str:
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
    return image


def _symbols(images: dict[str, Image.Image | str], side: int, quality: int) -> Iterator[Html]:
    for symbol, image in images.items():
        if isinstance(image, str):
            yield _placeholder(symbol)
            continue
        small = image.copy()
        small.thumbnail((side, side))
        width, height = small.size
        picture = element("image", width=width, height=height, href=_data_uri(small, quality))
        yield element("symbol", picture, id=symbol, viewBox=f"0 0 {width} {height}")


def _data_uri(image: Image.Image, quality: int) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _placeholder(symbol: str) -> Html:
    box = element("rect", width=100, height=100, class_="missing")
    line = element("path", d="M30 62 44 46 54 56 62 49 72 62Z M30 34H72V66H30Z", class_="missing-line")
    text = element("text", "no photo", x=50, y=84, class_="missing-text")
    return element("symbol", box, line, text, id=symbol, viewBox="0 0 100 100")


MAX_BYTES = 4_800_000  # bytes of a page, at most, unless the smallest photos need more
_NAMED = 20  # unreadable photos listed by name, at most


class Page:
    """A page under construction. All photos shown on it are in `photos`."""

    def __init__(self, job: str, title: str, summary: Child = None, scripts: tuple[str, ...] = ()) -> None:
        """Starts a page of `job`. `summary` is shown below the title. `scripts` from `assets` are added to page.js."""
        self.photos = PagePhotos()
        self._job, self._title, self._summary, self._scripts = job, title, summary, ("page.js", *scripts)
        self._sections: list[tuple[str, Html]] = []

    def section(self, title: str, *content: Child, note: Child = None) -> None:
        """Adds a section: a heading, an explanatory `note` below it, and the content."""
        number = len(self._sections)
        heading = element("h2", title, id=f"h{number}")
        body = (heading, element("p", note, class_="note") if note else None, content)
        self._sections.append((title, element("section", body, id=f"s{number}", aria_labelledby=f"h{number}")))

    @step("writing the page")
    def write(self, uri: str) -> None:
        """Writes the page to the file `uri`."""
        files.write_bytes(uri, self.render())

    def render(self) -> bytes:
        """The page as HTML in UTF-8."""
        if unreadable := self.photos.unreadable():
            self.section(f"Photos that could not be read: {len(unreadable)}", _reasons(unreadable))
        style, script = _asset("page.css"), "".join(map(_asset, self._scripts))
        links = [element("a", title, href=f"#s{number}") for number, (title, _) in enumerate(self._sections)]
        parts = {
            "policy": _policy(style, script),
            "title": fragment(self._title),
            "style": style,
            "job": fragment(self._job),
            "summary": element("p", self._summary, class_="summary") if self._summary else "",
            "links": fragment(links) if len(links) > 1 else "",
            "sections": fragment(section for _, section in self._sections),
            "version": fragment(dim.__version__),
            "script": script,
        }
        size = sum(len(part.encode()) for part in parts.values())
        template = Template(_asset("page.html"))
        return template.substitute(parts, symbols=self.photos.symbols(MAX_BYTES - size)).encode()


def _asset(file: str) -> str:
    return resources.files("dim.report").joinpath("assets", file).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """The content security policy: browsers load nothing and apply only this style and script, whatever the markup."""
    allowed = {kind: f"'sha256-{_sha256(text)}'" for kind, text in (("style-src", style), ("script-src", script))}
    rules = {"default-src": "'none'", "img-src": "data:", **allowed, "base-uri": "'none'", "form-action": "'none'"}
    return "; ".join(f"{kind} {sources}" for kind, sources in rules.items())


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _reasons(unreadable: dict[str, str]) -> Html:
    shown = list(unreadable.items())[:_NAMED]
    more = len(unreadable) - len(shown)
    items = [element("li", user_text(uris.redacted(path)), ": ", uris.redacted(reason)) for path, reason in shown]
    return element("ul", items, element("li", f"and {more} more") if more else None, class_="plain")
