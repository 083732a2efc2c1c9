"""The audit for people: the first suspects of each kind with the photos that speak for and against them, and all in a
table.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from dim.audit.config import AuditConfig
from dim.audit.suspects import DUPLICATE, FAR, LABEL, AuditedPhotos, Suspect
from dim.report import parts
from dim.report.page import Html, Page, PagePhoto
from dim.report.parts import Card, Column, Row

SHOWN = {LABEL: 40, DUPLICATE: 20, FAR: 20}  # suspects with photos
MATES = 3  # photos shown of a label
TITLES = {
    LABEL: ("Another label's", "First the suspect; photos of its label; photos of the label that claims it."),
    DUPLICATE: (
        "All but the same",
        "Two photos under two labels or in two splits, the nearest of all such pairs between these two.",
    ),
    FAR: ("Far from their label", "First the suspect; photos of its label."),
}
COLUMNS = [
    Column("kind"), Column("score", ".3f"), Column("photo"), Column("label"), Column("split", spare=True),
    Column("other photo", spare=True), Column("other label"), Column("other split", spare=True),
]  # fmt: skip


def write(
    uri: str, config: AuditConfig, photos: AuditedPhotos, where: Sequence[PagePhoto], found: list[Suspect]
) -> None:
    """Writes the page on what was `found` among `photos`, which lie `where`, to `uri`."""
    page = Page("audit", "Likely label errors", f"{len(found)} suspicions among {len(where)} photos")
    kinds = {kind: [one for one in found if one.kind == kind] for kind in TITLES}
    figures = {TITLES[kind][0]: (str(len(those)), f"of {len(where)} photos") for kind, those in kinds.items()}
    inputs = {"Manifest": config.manifest, "Descriptors": config.descriptors, "Whitening": config.whitening or "none"}
    page.section("Headline", parts.figures(figures), parts.facts(inputs))
    strips = _Strips(page, photos, where)
    for kind, those in kinds.items():
        told, (title, note) = _each_once(photos, those) if kind == DUPLICATE else those, TITLES[kind]
        shown = told[: SHOWN[kind]]
        if shown:
            few = f" These are the first {len(shown)} of {len(told)}." if len(shown) < len(told) else ""
            page.section(title, [strips.of(one) for one in shown], note=note + few)
    rows = [Row([one.kind, one.score, *_told(photos, one.row), *_told(photos, one.other)]) for one in found]
    page.section("All suspects", parts.table(COLUMNS, rows, "suspects"))
    page.write(uri)


def _each_once(photos: AuditedPhotos, pairs: Sequence[Suspect]) -> list[Suspect]:
    """The first of `pairs` between each two labels and splits."""
    first: dict[frozenset[tuple[str | None, str | None]], Suspect] = {}
    for pair in pairs:
        sides = frozenset((photos.labels[row], photos.splits[row]) for row in (pair.row, pair.other))
        first.setdefault(sides, pair)
    return list(first.values())


def _told(photos: AuditedPhotos, row: int) -> list[str | None]:
    return [photos.ids[row], photos.labels[row], photos.splits[row]]


class _Strips:
    """The strips of `page`."""

    def __init__(self, page: Page, photos: AuditedPhotos, where: Sequence[PagePhoto]) -> None:
        self._page, self._photos, self._where = page, photos, where

    def of(self, one: Suspect) -> Html:
        """The suspect, and the photos that speak for and against it."""
        if one.kind == DUPLICATE:
            others = [
                self._card(one.other, f"1 of {one.pairs:,} pairs" if one.pairs and one.pairs > 1 else "the other")
            ]
        else:
            others = list(self._mates(one))
        return parts.strip(self._page.photos, others, first=self._card(one.row, f"{one.score:.2f}"))

    def _mates(self, one: Suspect) -> Iterator[Card]:
        own, other = self._photos.labels[one.row], self._photos.labels[one.other]
        for row in self._nearest(one.row, own):
            yield self._card(row, "its label")
        if other != own:
            for row in self._nearest(one.row, other):
                yield self._card(row, "claims it")

    def _nearest(self, row: int, label: str) -> list[int]:
        """The photos of `label` nearest to that in `row`, itself left out."""
        there = np.flatnonzero(self._photos.labels == label)
        there = there[there != row]
        order = np.argsort(-(self._photos.vectors[there] @ self._photos.vectors[row]), kind="stable")
        return [int(found) for found in there[order[:MATES]]]

    def _card(self, row: int, note: str) -> Card:
        return Card(self._photos.ids[row], self._where[row], self._photos.labels[row], note)
