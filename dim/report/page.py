"""A page as one HTML file that contains style, scripts and photos, and loads no other file.

`Page` collects sections of `dim.report.markup`, and writes the file. Its content security policy allows only its own
style and scripts.
"""

import base64
import hashlib
from importlib import resources
from string import Template

import dim
from dim.app.progress import step
from dim.io import files, uris
from dim.report.markup import Child, Html, element, fragment, user_text
from dim.report.page_photos import PagePhotos

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
