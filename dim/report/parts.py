"""What pages are made of: headline figures, facts, strips of photos, tables that can be sorted and filtered."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dim.evaluate.protocols import Verdict
from dim.report.page import Child, Html, PagePhoto, PagePhotos, element, name

_MARKS: dict[Verdict, str] = {"right": "✓", "wrong": "✗", "junk": "–"}


@dataclass(frozen=True)
class Card:
    """A photo: its id, its label where that is known, a `note` such as its score, and whether it is right."""

    image_id: str
    photo: PagePhoto
    label: str | None = None
    note: str = ""
    verdict: Verdict | None = None

    def described(self) -> str:
        """The card in words, for those who don't see the picture."""
        known = [self.note, self.verdict, f"label {self.label}" if self.label else None, f"photo {self.image_id}"]
        return ", ".join(part for part in known if part)


def strip(photos: PagePhotos, cards: Iterable[Card], first: Card | None = None) -> Html:
    """Cards side by side, each framed and marked by its verdict; `first`, the query say, stands apart before them."""
    before = element("li", _figure(photos, first), class_="first") if first else None
    return element("ol", before, [element("li", _figure(photos, card)) for card in cards], class_="strip")


def _figure(photos: PagePhotos, card: Card) -> Html:
    picture = photos.picture(card.photo, card.described())
    mark = element("b", _MARKS[card.verdict], class_="mark") if card.verdict else None
    lines = (
        element("span", card.note, class_="score") if card.note else None,
        element("span", name(card.label), class_="label") if card.label else None,
        element("span", name(card.image_id), class_="id"),
    )
    return element("figure", picture, mark, element("figcaption", lines), class_=f"card {card.verdict or ''}".strip())


def listing(cards: Iterable[Card]) -> Html:
    """Cards in words, where there is no room for their photos."""
    return element("ol", [element("li", _words(card), class_=card.verdict) for card in cards], class_="listing")


def _words(card: Card) -> tuple[Child, ...]:
    mark = element("b", _MARKS[card.verdict]) if card.verdict else None
    return mark, f" {card.note} ", name(card.label) if card.label else None, " ", element("i", card.image_id)


def legend(*verdicts: Verdict) -> Html:
    """What frames and marks mean; of all `verdicts` where none is named."""
    meanings: dict[Verdict, str] = {"right": "shows the same", "wrong": "does not", "junk": "junk, not counted"}
    items = [
        element("li", element("b", _MARKS[verdict], class_="mark"), meanings[verdict], class_=verdict)
        for verdict in verdicts or meanings
    ]
    return element("ul", items, class_="legend")


def figures(values: Mapping[str, tuple[str, Child]]) -> Html:
    """Headline figures: what → (value, what it means)."""
    boxes = [
        element("div", element("dt", what), element("dd", element("strong", value), element("span", meaning)))
        for what, (value, meaning) in values.items()
    ]
    return element("dl", boxes, class_="figures")


def facts(values: Mapping[str, Child]) -> Html:
    """Settings and counts: name → value."""
    rows = [element("div", element("dt", what), element("dd", value)) for what, value in values.items()]
    return element("dl", rows, class_="facts")


@dataclass(frozen=True)
class Column:
    """A column of a table. Numbers are shown by `form`; on a phone a `spare` column is left out."""

    title: str
    form: str = ""
    spare: bool = False
    explanation: str | None = None


@dataclass(frozen=True)
class Row:
    """A row: a value for each column, text or number, None where there is none; `detail` unfolds below it."""

    cells: Sequence[str | float | None]
    detail: Html | None = None


def table(columns: Sequence[Column], rows: Sequence[Row], what: str) -> Html:
    """A table of `what` (plural) that is sorted by a click on a heading and filtered by words; rows unfold."""
    unfolds = any(row.detail for row in rows)
    heads = [_head(column) for column in columns]
    head = element(
        "thead", element("tr", element("th", element("span", "Unfold", class_="unseen")) if unfolds else None, heads)
    )
    bodies = [_body(columns, row, unfolds) for row in rows]
    field = element("input", type="search", placeholder=f"Filter {what}", aria_label=f"Filter {what}")
    count = element("output", f"{len(rows)} of {len(rows)}", aria_live="polite")
    content = element("table", element("caption", what, class_="unseen"), head, bodies)
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
    return element("td", name(value) if value is not None else "–", class_=_classes(column))
