"""The page of an audit: the first suspects of each kind, with photos to compare, and a table of all suspects."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dim.audit import within_label
from dim.audit.config import AuditConfig
from dim.audit.photos import AuditedPhotos
from dim.audit.suspects import DUPLICATE, FAR, LABEL, Suspect
from dim.report import parts
from dim.report.markup import Html
from dim.report.page import Page
from dim.report.page_photos import PagePhoto
from dim.report.parts import Card, Column, Row

SHOWN = {LABEL: 40, DUPLICATE: 20, FAR: 20}  # suspects of each kind shown with photos, at most
NEIGHBOURS = 3  # photos per label shown beside a suspect, at most
IN_TABLE = 5000  # suspects of each kind in the table, at most; the files list more
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
    uri: str, config: AuditConfig, photos: AuditedPhotos, where: Callable[[int], PagePhoto], found: list[Suspect]
) -> None:
    """Writes the page on the suspects `found`, worst first, to `uri`. `where` gives the path and box of a photo."""
    page = Page("audit", "Likely label errors", f"{len(found)} suspects among {len(photos)} photos")
    kinds = {kind: [suspect for suspect in found if suspect.kind == kind] for kind in TITLES}
    figures = {TITLES[kind][0]: (str(len(suspects)), f"of {len(photos)} photos") for kind, suspects in kinds.items()}
    inputs = {"Manifest": config.manifest, "Descriptors": config.descriptors, "Whitening": config.whitening or "none"}
    page.section("Headline", parts.figures(figures), parts.facts(inputs))
    distinct = {**kinds, DUPLICATE: _one_per_pair(photos, kinds[DUPLICATE])}
    shown = {kind: suspects[: SHOWN[kind]] for kind, suspects in distinct.items()}
    strips = _Strips(page, photos, where, [suspect for suspects in shown.values() for suspect in suspects])
    for kind, (title, note) in TITLES.items():
        if first := shown[kind]:
            few = f" These are the first {len(first)} of {len(distinct[kind])}." if first != distinct[kind] else ""
            page.section(title, [strips.of(suspect) for suspect in first], note=note + few)
    listed = [suspect for suspects in kinds.values() for suspect in suspects[:IN_TABLE]]
    rows = [Row([one.kind, one.score, *_cells(photos, one.row), *_cells(photos, one.other)]) for one in listed]
    more = f"The first {IN_TABLE:,} of each kind; suspects.csv lists more." if len(listed) < len(found) else None
    page.section("All suspects", parts.table(COLUMNS, rows, "suspects"), note=more)
    page.write(uri)


def _one_per_pair(photos: AuditedPhotos, pairs: Sequence[Suspect]) -> list[Suspect]:
    """Keeps the first of all pairs of photos that have the same two labels and the same two splits."""
    first: dict[frozenset[int], Suspect] = {}
    for pair in pairs:
        sides = frozenset(photos.sides[[pair.row, pair.other]].tolist())
        first.setdefault(sides, pair)
    return list(first.values())


def _cells(photos: AuditedPhotos, row: int) -> list[str | None]:
    return [photos.id(row), photos.label(row), photos.split(row)]


class _Strips:
    """Draws each suspect beside the photos that it is compared with."""

    def __init__(
        self, page: Page, photos: AuditedPhotos, where: Callable[[int], PagePhoto], shown: Sequence[Suspect]
    ) -> None:
        self._page, self._photos, self._where = page, photos, where
        asked = [(one.row, label) for one in shown if one.kind != DUPLICATE for label in self._labels(one)]
        rows, labels = np.array(asked, np.int64).reshape(-1, 2).T
        nearest, _ = within_label.nearest(photos, rows, labels, np.zeros(len(photos)), NEIGHBOURS)
        self._nearest = {pair: rows[rows >= 0].tolist() for pair, rows in zip(asked, nearest, strict=True)}

    def _labels(self, one: Suspect) -> list[int]:
        """The label of the suspect and, if it is another one, the label of the photo to compare it with."""
        return list(dict.fromkeys(self._photos.labels[[one.row, one.other]].tolist()))

    def of(self, one: Suspect) -> Html:
        """The suspect, followed by its duplicate or its neighbours."""
        return parts.strip(self._page.photos, self._others(one), first=self._card(one.row, f"{one.score:.2f}"))

    def _others(self, one: Suspect) -> Iterator[Card]:
        if one.kind == DUPLICATE:
            yield self._card(one.other, f"1 of {one.pairs:,} pairs" if one.pairs and one.pairs > 1 else "the other")
            return
        for label, said in zip(self._labels(one), ("its label", "other label"), strict=False):
            for row in self._nearest[one.row, label]:
                yield self._card(row, said)

    def _card(self, row: int, note: str) -> Card:
        return Card(self._photos.id(row), self._where(row), self._photos.label(row), note)
