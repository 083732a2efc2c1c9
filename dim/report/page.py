"""A page as one file: its markup, its style, its script and its photos, under a policy that lets nothing else in."""

import base64
import hashlib
from importlib import resources
from string import Template

import dim
from dim.io import files, uris
from dim.report.html import Child, Html, element, fragment, name
from dim.report.photos import Photos

BYTES = 4_800_000  # of a page; its photos are made as small as that takes
_SHOWN = 20  # unreadable photos that are named


class Page:
    """A page that is being put together; `photos` are those that its parts show."""

    def __init__(self, job: str, title: str, summary: Child = None, scripts: tuple[str, ...] = ()) -> None:
        """`job` names what made it; `scripts` are files of `dim/report/assets` beyond page.js."""
        self.photos = Photos()
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
