"""The page of group.py: the groups as strips, in which a person marks photos that don't belong, and the copies."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.data.manifest import Manifest
from dim.group.config import GroupConfig
from dim.group.corrections import COLUMNS as CORRECTED
from dim.group.tables import Found
from dim.group.threshold import Curve
from dim.io import tables
from dim.report import charts, parts
from dim.report.charts import Line
from dim.report.markup import Html, element, user_text
from dim.report.page import Page
from dim.report.page_photos import PagePhoto
from dim.report.parts import Card, Column, Row

SHOWN = 30  # largest groups, and most doubtful groups, that are shown, at most
PHOTOS = 12  # photos of a group that are shown, at most
IN_TABLE = 2000  # groups, and copies, in the tables, at most
NOTE = (
    "The group's medoid comes first, then its least similar photos. Below a photo is its similarity to the medoid. "
    "Mark the photos that don't belong to the group, save the marks, and run the same command with --corrections FILE."
)
GROUPS = [
    Column("group"), Column("photos", ",d"), Column("least similarity", ".3f", explanation="to the medoid"),
    Column("confidence", ".3f", explanation="the mean silhouette; below 0, other photos are nearer than the group"),
]  # fmt: skip
COPIES = [Column("keep"), Column("delete"), Column("why"), Column("similarity", ".3f", spare=True)]


def write(uri: str, config: GroupConfig, chosen: Manifest, found: Found, result: dict[str, Any]) -> None:
    """Writes the page on what was `found` to `uri`. `result` is the job's."""
    groups, curve, copies = _Groups(found.objects), found.curve, found.duplicates
    page = Page(
        "group", "Groups of photos", f"{result['groups']} groups among {result['images']} photos", ("group.js",)
    )
    figures = {
        "Groups": (f"{result['groups']:,}", f"the largest has {result['largest']:,} photos"),
        "Photos in groups": (f"{result['grouped']:,}", f"of {result['images']:,}"),
        "Photos alone": (f"{result['alone']:,}", "resemble no other photo enough"),
        "Copies": (f"{result['copies']:,}", f"of which {result['identical']:,} are identical files"),
    }
    by = "chosen: the groups are most distinct" if result["threshold_chosen"] else "given"
    page.section("Headline", parts.figures(figures), parts.facts(_facts(config, f"{result['threshold']:.3f}, {by}")))
    page.section("Threshold", _charts(curve), note=_note_on(curve, result))
    if len(groups):
        strips: list[Html] = [_tools(config)]
        for title, numbers in (("Most doubtful", groups.most_doubtful()), ("Largest", groups.largest())):
            drawn = [_strip(page, chosen, groups.table_of(number)) for number in numbers]
            few = f"{len(drawn)} of {len(groups):,} groups"
            strips += [element("h3", title, element("small", few)), element("div", drawn, class_="groups")]
        page.section("Groups", strips, note=NOTE)
        page.section(
            "All groups", parts.table(GROUPS, list(groups.rows()), "groups"), note=_more(len(groups), "groups.parquet")
        )
    if len(copies):
        listed = copies.slice(0, IN_TABLE).to_pylist()
        rows = [Row([one["keep"], one["delete"], one["why"], one["similarity"]]) for one in listed]
        page.section("Copies", parts.table(COPIES, rows, "copies"), note=_more(len(copies), "duplicates.csv"))
    page.write(uri)


def _facts(config: GroupConfig, threshold: str) -> dict[str, str]:
    return {
        "Manifest": config.manifest, "Descriptors": config.descriptors, "Whitening": config.whitening or "none",
        "Threshold": threshold, "Copies": f"from {config.copies}", "Neighbours": str(config.neighbours),
        "Searched": f"in {config.index}" if config.index else "exactly", "Corrections": config.corrections or "none",
    }  # fmt: skip


def _charts(curve: Curve) -> Html:
    order = np.argsort(curve.thresholds)
    x = curve.thresholds[order].tolist()
    drawn = []
    for title, axis, values in (
        ("How distinct the groups are", "silhouette", curve.silhouette),
        ("Groups", "groups", curve.groups),
        ("Photos in groups", "share", curve.grouped),
    ):
        y = values[order].astype(float).tolist()
        drawn.append(charts.lines(title, charts.axis("threshold", x), charts.axis(axis, y), [Line(title, x, y)]))
    return element("div", drawn, class_="charts")


def _note_on(curve: Curve, result: dict[str, Any]) -> str:
    return (
        f"Each threshold gives other groups. By the silhouette, {curve.best:.3f} is the best; the groups below are of "
        f"{result['threshold']:.3f}. A higher threshold finds fewer and surer groups; set it with --threshold."
    )


def _tools(config: GroupConfig) -> Html:
    field = element("input", type="search", placeholder="Filter groups", aria_label="Filter groups by their photos")
    save = element("button", "Save corrections.csv", type="button", class_="save", disabled=True)
    told = element("output", "no photo is marked", aria_live="polite")
    earlier = element("pre", _earlier(config), hidden=True) if config.corrections else None
    return element("div", element("p", field, save, told, class_="tools"), earlier, class_="corrections")


def _earlier(config: GroupConfig) -> str:
    """The corrections that were given, as JSON, which the page saves together with the new ones."""
    table = tables.read(str(config.corrections)).select(list(CORRECTED))
    return json.dumps([list(row.values()) for row in table.to_pylist()])


class _Groups:
    """The groups with a name and two photos or more, by size."""

    def __init__(self, table: pa.Table) -> None:
        table = table.filter(pc.and_(pc.is_valid(table["group"]), pc.greater(table["size"], 1)))
        order = table.append_column("row", pa.array(np.arange(len(table)))).sort_by(
            [("group", "ascending"), ("row", "ascending")]
        )
        self._table = order
        figures = order.group_by("group").aggregate([("size", "max"), ("similarity", "min"), ("confidence", "mean")])
        figures = figures.sort_by([("size_max", "descending"), ("group", "ascending")])
        self._names = figures["group"].combine_chunks()
        self._figures = [figures[name].to_numpy() for name in ("size_max", "similarity_min", "confidence_mean")]

    def __len__(self) -> int:
        return len(self._names)

    def largest(self) -> list[int]:
        return list(range(min(SHOWN, len(self))))

    def most_doubtful(self) -> list[int]:
        order: list[int] = np.argsort(self._figures[2], kind="stable")[:SHOWN].tolist()
        return order

    def table_of(self, number: int) -> pa.Table:
        """The photos of a group: the medoid, then the least similar ones first."""
        rows = self._table.filter(pc.equal(self._table["group"], self._names[number]))
        keys = [("medoid", "descending"), ("similarity", "ascending"), ("image_id", "ascending")]
        return rows.sort_by(keys)

    def rows(self) -> Iterator[Row]:
        for number, name in enumerate(self._names[:IN_TABLE].to_pylist()):
            size, least, confidence = (float(values[number]) for values in self._figures)
            yield Row([name, int(size), least, confidence])


def _strip(page: Page, chosen: Manifest, table: pa.Table) -> Html:
    """A group: its name, size, and photos."""
    shown = table.slice(0, PHOTOS).to_pylist()
    places = pc.index_in(table.slice(0, PHOTOS)["image_id"], chosen.ids)
    few = Manifest(chosen.uri, chosen.table.take(places))
    cards = [
        Card(row["image_id"], PagePhoto(path, box), None, "medoid" if row["medoid"] else f"{row['similarity']:.2f}")
        for row, path, box in zip(shown, few.paths, few.boxes, strict=True)
    ]
    more = f", of which {len(shown)} are shown" if len(table) > len(shown) else ""
    heading = element("h4", user_text(shown[0]["group"]), element("small", f"{len(table):,} photos{more}"))
    return element("article", heading, parts.strip(page.photos, cards[1:], first=cards[0]), class_="group")


def _more(count: int, file: str) -> str | None:
    return f"The first {IN_TABLE:,} of {count:,}; {file} has all." if count > IN_TABLE else None
