"""All nights on a page, `trend.html`: mAP night by night, what was refused or missed, and the way to each report."""

import datetime
import urllib.parse
from collections.abc import Sequence
from typing import Any

from dim import files
from dim.evaluate.randomization import WIDEST
from dim.nightly.history import ACCEPTED, MISSED, REFUSED, number
from dim.pages import parts, timeline
from dim.pages.html import Html, element, name
from dim.pages.page import Page
from dim.pages.parts import Column
from dim.pages.timeline import Kind, Mark

FILE = "trend.html"
ROWS = 1000  # of a table, the last
NAMES: dict[Kind, str] = {
    "kept": "accepted",
    "changed": "accepted, with another network than before",
    "refused": "refused",
    "missing": "missed: no night was run",
}


def write(out: str, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the page of a history's `rows`, by date, into its folder `out`."""
    evaluations: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        evaluations.setdefault(str(row["evaluation"]), []).append(row)
    page = Page("nightly", "Night after night", [name(out), f": {_nights(rows)}"])
    for evaluation, nights in evaluations.items():
        if all(row["status"] == MISSED for row in nights):
            continue  # its own night was taken out of the history by hand
        page.section(evaluation, *_shown(evaluation, nights))
    page.write(files.join(out, FILE))


def _nights(rows: Sequence[dict[str, Any]]) -> str:
    first, last = rows[0]["date"], rows[-1]["date"]
    return f"the night {first}" if first == last else f"nights from {first} to {last}"


def _shown(evaluation: str, nights: Sequence[dict[str, Any]]) -> list[Html]:
    marks = [_mark(row, before) for row, before in zip(nights, _accepted_before(nights), strict=True)]
    title = "mAP by night; a bar is the 95 % interval of the change to another network"
    chart = timeline.chart(title, "mAP", marks, NAMES)
    rows = [_row(evaluation, row) for row in reversed(nights[-ROWS:])]
    return [parts.figures(_headline(nights)), chart, parts.table(_COLUMNS, rows, "nights")]


def _accepted_before(nights: Sequence[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """For each night the last one before it that was accepted."""
    found: list[dict[str, Any] | None] = []
    last = None
    for row in nights:
        found.append(last)
        last = row if row["status"] == ACCEPTED else last
    return found


def _mark(row: dict[str, Any], before: dict[str, Any] | None) -> Mark:
    date = datetime.date.fromisoformat(row["date"])
    value, low, high = (number(row, column) for column in ("map", "low", "high"))
    if value is None:
        return Mark(date, "missing", f"{date}: missed")
    changed = before is not None and before["embedding"] != row["embedding"]
    kind: Kind = "refused" if row["status"] == REFUSED else "changed" if changed else "kept"
    told = f"{date}, {row['status']}: mAP {value:.4f} with {number(row, 'images') or 0:,.0f} photos"
    change = number(row, "difference")
    if change is None or not changed:
        return Mark(date, kind, told, value)
    told += f"; {change:+.4f} against the network of {row['baseline']}"
    if low is None or high is None or high - low >= 2 * WIDEST:  # too few objects for an interval
        return Mark(date, kind, told, value)
    told += f", 95 % interval {low:+.4f} to {high:+.4f}"
    known = value - change
    return Mark(date, kind, told, value, max(0.0, known + low), min(1.0, known + high))


def _headline(nights: Sequence[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    measured = [row for row in nights if row["status"] != MISSED]
    last, before = measured[-1], _accepted_before(measured)[-1]
    value, change, photos = (number(last, column) for column in ("map", "difference", "images"))
    against = "the first night"
    if before:
        same = before["embedding"] == last["embedding"]
        against = f"{'the same network as' if same else 'against the network of'} {before['date']}"
    counts = {status: sum(row["status"] == status for row in nights) for status in (ACCEPTED, REFUSED, MISSED)}
    return {
        "Last night": (str(last["date"]), str(last["status"])),
        "mAP": ("–" if value is None else f"{value:.4f}", f"with {photos or 0:,.0f} photos"),
        "Change": ("–" if change is None else f"{change:+.4f}", against),
        "Nights": (f"{counts[ACCEPTED]}", f"accepted, {counts[REFUSED]} refused, {counts[MISSED]} missed"),
    }


_COLUMNS = [
    Column("night"),
    Column("status"),
    Column("mAP", ".4f", explanation="mean average precision"),
    Column("change", "+.4f", explanation="mAP less that of the network of the last accepted night, same photos"),
    Column("from", "+.4f", spare=True, explanation="95 % interval of the change"),
    Column("to", "+.4f", spare=True, explanation="95 % interval of the change"),
    Column("p", ".4f", spare=True, explanation="of no change, two-sided"),
    Column("photos", ",.0f", spare=True),
    Column("new", ",.0f", spare=True, explanation="photos that were extracted in the night"),
    Column("errors", ",.0f", spare=True, explanation="photos that could not be read"),
]


def _row(evaluation: str, row: dict[str, Any]) -> parts.Row:
    value, change, *interval = (number(row, column) for column in ("map", "difference", "low", "high", "p_value"))
    values = [value, change, *(interval if interval[0] != interval[1] else [None] * 3)]  # none of the same network
    counts = [number(row, column) for column in ("images", "computed", "errors")]
    date = str(row["date"])
    report = urllib.parse.quote(f"nights/{date}/{evaluation}/report.html")
    link = date if row["status"] == MISSED else element("a", date, href=report)
    detail = element("p", name(row["reason"])) if row["reason"] else None
    return parts.Row([link, row["status"], *values, *counts], detail)
