"""Markup that cannot be got wrong: whatever is not markup already is escaped when it becomes part of an element."""

import html
from collections.abc import Iterable
from typing import TypeAlias

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
