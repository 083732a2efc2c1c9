"""The page of an audit: the first suspects of each kind, with photos to compare, and a table of all suspects."""

from collections.abc import Iterator, Sequence

import numpy as np

from dim.audit.config import AuditConfig
from dim.audit.suspects import DUPLICATE, FAR, LABEL, AuditedPhotos, Suspect
from dim.report import parts
from dim.report.page import Html, Page, PagePhoto
from dim.report.parts import Card, Column, Row

SHOWN = {LABEL: 40, DUPLICATE: 20, FAR: 20}  # suspects of each kind shown with photos, at most
NEIGHBOURS = 3  # photos per label shown beside a suspect, at most
TITLES = {
    LABEL: (
        "Wrong labels",
        "The suspect, its nearest photos of its own label, and those of the label it may belong to.",
    ),
    DUPLICATE: (
        "Near duplicates",
        "Two almost identical photos with different labels or in different splits. If many such pairs have the same "
        "two labels and splits, only the most similar pair is shown.",
    ),
    FAR: ("Far from their label", "The suspect and its nearest photos of its own label."),
}
COLUMNS = [
    Column("kind"), Column("score", ".3f"), Column("photo"), Column("label"), Column("split", spare=True),
    Column("other photo", spare=True), Column("other label"), Column("other split", spare=True),
]  # fmt: skip


def write(
    uri: str, config: AuditConfig, photos: AuditedPhotos, where: Sequence[PagePhoto], found: list[Suspect]
) -> None:
    """Writes the page on the suspects `found`, worst first, to `uri`. `where` has the path and box of each photo."""
    page = Page("audit", "Likely label errors", f"{len(found)} suspects among {len(where)} photos")
    kinds = {kind: [suspect for suspect in found if suspect.kind == kind] for kind in TITLES}
    figures = {TITLES[kind][0]: (str(len(suspects)), f"of {len(where)} photos") for kind, suspects in kinds.items()}
    inputs = {"Manifest": config.manifest, "Descriptors": config.descriptors, "Whitening": config.whitening or "none"}
    page.section("Headline", parts.figures(figures), parts.facts(inputs))
    strips = _Strips(page, photos, where)
    for kind, (title, note) in TITLES.items():
        distinct = _one_per_pair(photos, kinds[kind]) if kind == DUPLICATE else kinds[kind]
        shown = distinct[: SHOWN[kind]]
        if shown:
            few = f" These are the first {len(shown)} of {len(distinct)}." if len(shown) < len(distinct) else ""
            page.section(title, [strips.of(suspect) for suspect in shown], note=note + few)
    rows = [Row([one.kind, one.score, *_cells(photos, one.row), *_cells(photos, one.other)]) for one in found]
    page.section("All suspects", parts.table(COLUMNS, rows, "suspects"))
    page.write(uri)


def _one_per_pair(photos: AuditedPhotos, pairs: Sequence[Suspect]) -> list[Suspect]:
    """Keeps the first of all pairs of photos that have the same two labels and the same two splits."""
    first: dict[frozenset[tuple[str | None, str | None]], Suspect] = {}
    for pair in pairs:
        sides = frozenset((photos.labels[row], photos.splits[row]) for row in (pair.row, pair.other))
        first.setdefault(sides, pair)
    return list(first.values())


def _cells(photos: AuditedPhotos, row: int) -> list[str | None]:
    return [photos.ids[row], photos.labels[row], photos.splits[row]]


class _Strips:
    """Draws each suspect beside the photos that it is compared with."""

    def __init__(self, page: Page, photos: AuditedPhotos, where: Sequence[PagePhoto]) -> None:
        self._page, self._photos, self._where = page, photos, where

    def of(self, one: Suspect) -> Html:
        """The suspect, followed by its duplicate or its neighbours."""
        return parts.strip(self._page.photos, self._others(one), first=self._card(one.row, f"{one.score:.2f}"))

    def _others(self, one: Suspect) -> Iterator[Card]:
        if one.kind == DUPLICATE:
            yield self._card(one.other, f"1 of {one.pairs:,} pairs" if one.pairs and one.pairs > 1 else "the other")
            return
        own, other = self._photos.labels[one.row], self._photos.labels[one.other]
        for row in self._nearest(one.row, own):
            yield self._card(row, "its label")
        if other != own:
            for row in self._nearest(one.row, other):
                yield self._card(row, "other label")

    def _nearest(self, row: int, label: str) -> list[int]:
        """The rows of the `NEIGHBOURS` photos of `label` nearest to the photo in `row`, without `row` itself."""
        others = np.flatnonzero(self._photos.labels == label)
        others = others[others != row]
        order = np.argsort(-(self._photos.vectors[others] @ self._photos.vectors[row]), kind="stable")
        return [int(found) for found in others[order[:NEIGHBOURS]]]

    def _card(self, row: int, note: str) -> Card:
        return Card(self._photos.ids[row], self._where[row], self._photos.labels[row], note)
