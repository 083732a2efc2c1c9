"""The parts that pages are made of: headline figures, facts, strips of photos, and tables to sort and filter."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dim.data.decode import Box
from dim.evaluate.protocols import Verdict
from dim.report.markup import Child, Html, element, user_text
from dim.report.page_photos import PagePhoto, PagePhotos

_MARKS: dict[Verdict, str] = {"right": "✓", "wrong": "✗", "junk": "–"}


@dataclass(frozen=True)
class Card:
    """A photo with its captions, framed and marked by its verdict."""

    image_id: str
    photo: PagePhoto
    label: str | None = None
    note: str = ""  # such as the photo's score
    verdict: Verdict | None = None
    found_at: Box | None = None  # where the photo shows the query, in its pixels

    def description(self) -> str:
        """The card in words, for screen readers."""
        known = [self.note, self.verdict, f"label {self.label}" if self.label else None, f"photo {self.image_id}"]
        return ", ".join(part for part in known if part)


def strip(photos: PagePhotos, cards: Iterable[Card], first: Card | None = None) -> Html:
    """Cards side by side, framed and marked by verdict. `first`, such as the query, stands apart before `cards`."""
    before = element("li", _figure(photos, first), class_="first") if first else None
    return element("ol", before, [element("li", _figure(photos, card)) for card in cards], class_="strip")


def _figure(photos: PagePhotos, card: Card) -> Html:
    picture = photos.picture(card.photo, card.description(), card.found_at)
    mark = element("b", _MARKS[card.verdict], class_="mark") if card.verdict else None
    lines = (
        element("span", card.note, class_="score") if card.note else None,
        element("span", user_text(card.label), class_="label") if card.label else None,
        element("span", user_text(card.image_id), class_="id"),
    )
    return element("figure", picture, mark, element("figcaption", lines), class_=f"card {card.verdict or ''}".strip())


def listing(cards: Iterable[Card]) -> Html:
    """Cards as a list of words. Without photos, the page is smaller."""
    return element("ol", [element("li", _words(card), class_=card.verdict) for card in cards], class_="listing")


def _words(card: Card) -> tuple[Child, ...]:
    mark = element("b", _MARKS[card.verdict]) if card.verdict else None
    return mark, f" {card.note} ", user_text(card.label) if card.label else None, " ", element("i", card.image_id)


def legend(*verdicts: Verdict) -> Html:
    """Explains the marks of the given verdicts, or of all verdicts if none is given."""
    meanings: dict[Verdict, str] = {"right": "same object", "wrong": "another object", "junk": "junk, not counted"}
    items = [
        element("li", element("b", _MARKS[verdict], class_="mark"), meanings[verdict], class_=verdict)
        for verdict in verdicts or meanings
    ]
    return element("ul", items, class_="legend")


def figures(values: Mapping[str, tuple[str, Child]]) -> Html:
    """Headline figures. `values` maps the name of each figure to (value, explanation)."""
    boxes = [
        element("div", element("dt", figure), element("dd", element("strong", value), element("span", explanation)))
        for figure, (value, explanation) in values.items()
    ]
    return element("dl", boxes, class_="figures")


def facts(values: Mapping[str, Child]) -> Html:
    """Settings and counts. `values` maps the name of each to the value."""
    rows = [element("div", element("dt", fact), element("dd", value)) for fact, value in values.items()]
    return element("dl", rows, class_="facts")


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    form: str = ""  # the format specification of the column's numbers; empty for text
    spare: bool = False  # hidden on phones
    explanation: str | None = None  # the tooltip of the heading


@dataclass(frozen=True)
class Row:
    """A row of a table. `cells` has one text, number or None per column. `detail` unfolds below the row."""

    cells: Sequence[str | float | None]
    detail: Html | None = None


def table(columns: Sequence[Column], rows: Sequence[Row], items: str) -> Html:
    """A table to sort and filter, with rows that unfold. `items` says what the rows show, such as "photos"."""
    unfolds = any(row.detail for row in rows)
    heads = [_head(column) for column in columns]
    head = element(
        "thead", element("tr", element("th", element("span", "Unfold", class_="unseen")) if unfolds else None, heads)
    )
    bodies = [_body(columns, row, unfolds) for row in rows]
    field = element("input", type="search", placeholder=f"Filter {items}", aria_label=f"Filter {items}")
    count = element("output", f"{len(rows)} of {len(rows)}", aria_live="polite")
    content = element("table", element("caption", items, class_="unseen"), head, bodies)
    return element(
        "div", element("p", field, count, class_="tools"), element("div", content, class_="scroll"), class_="table"
    )


def _head(column: Column) -> Html:
    button = element("button", column.title, type="button", title=column.explanation)
    return element("th", button, scope="col", aria_sort="none", class_=_classes(column))


def _classes(column: Column) -> str | None:
    return " ".join(["number"] * bool(column.form) + ["spare"] * column.spare) or None


def _body(columns: Sequence[Column], row: Row, unfolds: bool) -> Html:
    cells = [_cell(column, value) for column, value in zip(columns, row.cells, strict=True)]
    button, below = None, None
    if unfolds and row.detail:
        button = element("button", "▸", type="button", class_="unfold", aria_expanded="false", aria_label="Unfold")
        below = element("tr", element("td", row.detail, colspan=len(columns) + 1), hidden=True, class_="detail")
    return element("tbody", element("tr", element("td", button) if unfolds else None, cells), below)


def _cell(column: Column, value: str | float | None) -> Html:
    if isinstance(value, int | float):
        return element("td", format(value, column.form), data_value=value, class_=_classes(column))
    return element("td", user_text(value) if value is not None else "–", class_=_classes(column))
