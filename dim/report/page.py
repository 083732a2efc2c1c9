"""Markup that cannot be got wrong: whatever is not markup already is escaped when it becomes part of an element.

The photos of a page: read by threads while the page is put together, each embedded once, as small as it must be.

A page as one file: its markup, its style, its script and its photos, under a policy that lets nothing else in.
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
from dim.app.progress import Progress
from dim.data import isolated
from dim.data import photos as stored
from dim.data.decode import Box, DecodeError
from dim.errors import UserError
from dim.io import files, uris

Child: TypeAlias = str | int | float | Iterable["Child"] | None
Attribute: TypeAlias = str | int | float | bool | None

_VOID = {"br", "hr", "input", "meta"}


class Html(str):
    """Text that is markup. `element` alone makes it; any other `str` is text and will be shown as it is."""


def element(tag: str, *children: Child, **attributes: Attribute) -> Html:
    """The element `<tag>` with its children; a None child is left out, an iterable is taken apart.

    Of attributes, `class_="a"` is class="a", `data_value=1` is data-value="1", True is one without a value, and what is
    None or False is left out.
    """
    opening = f"<{tag}{''.join(_attribute(name, value) for name, value in attributes.items())}>"
    return Html(opening if tag in _VOID else f"{opening}{fragment(children)}</{tag}>")


def fragment(child: Child) -> Html:
    """`child` as markup: escaped unless it is that already."""
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


def name(text: str | None) -> Html:
    """A name that a user gave, a label or an id, so that right-to-left writing in it turns nothing around it."""
    return element("span", "none", class_="none") if text is None else element("bdi", text)


# Longest side in pixels and JPEG quality, from best to smallest: the first at which all photos fit is taken.
SIZES = ((224, 80), (176, 75), (144, 70), (112, 65), (88, 60), (64, 50))
_FULL = 2**31  # a size that no photo has: decoded as it is
_THREADS = min(16, 4 * (os.cpu_count() or 1))  # storage is waited for, too


@dataclass(frozen=True)
class PagePhoto:
    """Where a photo lies, a path or URI (None: not known), and the box of it that is shown, in pixels."""

    path: str | None
    box: Box | None = None


class PagePhotos:
    """The distinct photos that a page shows."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="thumbnails")
        self._found: dict[PagePhoto, Future[Image.Image | str]] = {}
        self._numbers: dict[PagePhoto, int] = {}

    def __len__(self) -> int:
        return len(self._found)

    def symbol(self, photo: PagePhoto) -> str:
        """The id of the SVG symbol that holds `photo`; its reading starts."""
        if photo not in self._found:
            self._numbers[photo] = len(self._found)
            self._found[photo] = self._threads.submit(_thumbnail, photo)
        return f"p{self._numbers[photo]}"

    def picture(self, photo: PagePhoto, description: str) -> Html:
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


def _thumbnail(photo: PagePhoto) -> Image.Image | str:
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


BYTES = 4_800_000  # of a page; its photos are made as small as that takes
_SHOWN = 20  # unreadable photos that are named


class Page:
    """A page that is being put together; `photos` are those that its parts show."""

    def __init__(self, job: str, title: str, summary: Child = None, scripts: tuple[str, ...] = ()) -> None:
        """`job` names what made it; `scripts` are files of `dim/report/assets` beyond page.js."""
        self.photos = PagePhotos()
        self._job, self._title, self._summary, self._scripts = job, title, summary, ("page.js", *scripts)
        self._sections: list[tuple[str, Html]] = []

    def section(self, title: str, *content: Child, note: Child = None) -> None:
        """Adds a section under a heading; `note` says below it what is shown."""
        number = len(self._sections)
        heading = element("h2", title, id=f"h{number}")
        body = (heading, element("p", note, class_="note") if note else None, content)
        self._sections.append((title, element("section", body, id=f"s{number}", aria_labelledby=f"h{number}")))

    def write(self, uri: str) -> None:
        """Writes the page to `uri`."""
        files.write_bytes(uri, self.render())

    def render(self) -> bytes:
        """The page, HTML in UTF-8."""
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
        return template.substitute(parts, symbols=self.photos.symbols(BYTES - size)).encode()


def _asset(file: str) -> str:
    return resources.files("dim.report").joinpath("assets", file).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing may be loaded, and no style or script applies but these: not even one that came in through a name."""
    allowed = {kind: f"'sha256-{_sha256(text)}'" for kind, text in (("style-src", style), ("script-src", script))}
    rules = {"default-src": "'none'", "img-src": "data:", **allowed, "base-uri": "'none'", "form-action": "'none'"}
    return "; ".join(f"{kind} {sources}" for kind, sources in rules.items())


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _reasons(unreadable: dict[str, str]) -> Html:
    shown = list(unreadable.items())[:_SHOWN]
    more = len(unreadable) - len(shown)
    items = [element("li", name(uris.redacted(path)), ": ", uris.redacted(reason)) for path, reason in shown]
    return element("ul", items, element("li", f"and {more} more") if more else None, class_="plain")
