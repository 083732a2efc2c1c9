"""Makes HTML elements. All text in them is escaped, so that a name can't inject markup."""

import html
from collections.abc import Iterable
from typing import TypeAlias

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
