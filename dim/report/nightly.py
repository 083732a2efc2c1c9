"""The page of all nights, trend.html. For each evaluation, it has a chart of mAP by date and a table of nights.

`write` makes the page from the rows of history.csv. `timeline` draws a chart of values from 0 to 1 by date.
"""

import datetime
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dim.evaluate.significance import WIDEST
from dim.io import files
from dim.nightly.history import ACCEPTED, MISSED, REFUSED, number
from dim.report import charts, parts
from dim.report.charts import FLOOR, TOP, Axis, Frame
from dim.report.markup import Html, element, user_text
from dim.report.page import Page
from dim.report.parts import Column

FILE = "trend.html"
ROWS = 1000  # nights in a table, at most; earlier nights are left out
WIDTH = 1000  # of a timeline, in SVG units
LABELS = 8  # dates written below a timeline, at most
CROWDED = 90  # a timeline with more dates has small marks
LEAST = 0.05  # the smallest range of the value axis: a tiny change must not fill the chart

Kind = Literal["kept", "changed", "refused", "missing"]
NAMES: dict[Kind, str] = {
    "kept": "accepted",
    "changed": "accepted, with another network than before",
    "refused": "refused",
    "missing": "missed: no night was run",
}
_COLUMNS = [
    Column("night"),
    Column("status"),
    Column("mAP", ".4f", explanation="mean average precision"),
    Column("change", "+.4f", explanation="tonight's network minus that of the last accepted night, on the same photos"),
    Column("from", "+.4f", spare=True, explanation="lower bound of the change's 95 % interval"),
    Column("to", "+.4f", spare=True, explanation="upper bound of the change's 95 % interval"),
    Column("p", ".4f", spare=True, explanation="p-value that there is no change, two-sided"),
    Column("photos", ",.0f", spare=True),
    Column("new", ",.0f", spare=True, explanation="photos extracted in the night"),
    Column("errors", ",.0f", spare=True, explanation="photos that could not be read"),
]


@dataclass(frozen=True)
class Mark:
    """A date on a timeline. A line connects "kept" and "changed" dates; it is broken at "missing" dates."""

    date: datetime.date
    kind: Kind
    tooltip: str
    value: float | None = None  # None if `kind` is "missing"
    low: float | None = None  # lower end of the interval's bar; None: no bar
    high: float | None = None  # upper end of the bar


def write(out: str, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the page to the folder `out`, given the rows of its history.csv in order of date."""
    evaluations: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        evaluations.setdefault(str(row["evaluation"]), []).append(row)
    page = Page("nightly", "Nightly evaluations", [user_text(out), f": {_nights(rows)}"])
    for evaluation, nights in evaluations.items():
        if all(row["status"] == MISSED for row in nights):
            continue  # a person deleted all rows of nights that were run
        page.section(evaluation, *_shown(evaluation, nights))
    page.write(files.join(out, FILE))


def _nights(rows: Sequence[dict[str, Any]]) -> str:
    first, last = rows[0]["date"], rows[-1]["date"]
    return f"the night {first}" if first == last else f"nights from {first} to {last}"


def _shown(evaluation: str, nights: Sequence[dict[str, Any]]) -> list[Html]:
    marks = [_mark(row, before) for row, before in zip(nights, _accepted_before(nights), strict=True)]
    title = "mAP by night. Bars: 95 % interval of the change to another network"
    chart = timeline(title, "mAP", marks, NAMES)
    rows = [_row(evaluation, row) for row in reversed(nights[-ROWS:])]
    return [parts.figures(_headline(nights)), chart, parts.table(_COLUMNS, rows, "nights")]


def _accepted_before(nights: Sequence[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """The last accepted night before each night, None if there is none."""
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
    tooltip = f"{date}, {row['status']}: mAP {value:.4f} with {number(row, 'images') or 0:,.0f} photos"
    change = number(row, "difference")
    if change is None or not changed:
        return Mark(date, kind, tooltip, value)
    tooltip += f"; {change:+.4f} against the network of {row['baseline']}"
    if low is None or high is None or high - low >= 2 * WIDEST:  # too few objects for an interval
        return Mark(date, kind, tooltip, value)
    tooltip += f", 95 % interval {low:+.4f} to {high:+.4f}"
    before_value = value - change
    return Mark(date, kind, tooltip, value, max(0.0, before_value + low), min(1.0, before_value + high))


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


def _row(evaluation: str, row: dict[str, Any]) -> parts.Row:
    value, change, *interval = (number(row, column) for column in ("map", "difference", "low", "high", "p_value"))
    if interval[0] == interval[1]:  # no interval, or no AP changed, as with the baseline's network
        interval = [None] * 3
    counts = [number(row, column) for column in ("images", "computed", "errors")]
    date = str(row["date"])
    report = urllib.parse.quote(f"nights/{date}/{evaluation}/report.html")
    link = date if row["status"] == MISSED else element("a", date, href=report)
    detail = element("p", user_text(row["reason"])) if row["reason"] else None
    return parts.Row([link, row["status"], value, change, *interval, *counts], detail)


def timeline(title: str, unit: str, marks: Sequence[Mark], names: dict[Kind, str]) -> Html:
    """Draws `marks`, which are in order of date. `unit` is the title of the value axis. `names` explains the kinds."""
    values = [value for mark in marks for value in (mark.value, mark.low, mark.high) if value is not None]
    if values:
        middle = (min(values) + max(values)) / 2
        values += [middle - LEAST / 2, middle + LEAST / 2]
    frame = Frame(_dates([mark.date for mark in marks]), charts.axis(unit, values, zero=False), WIDTH)
    size = 4.0 if len(marks) <= CROWDED else 2.0
    shapes = [*_lines(frame, marks)]
    for mark in marks:
        left = frame.left(mark.date.toordinal())
        up = FLOOR if mark.value is None else frame.up(mark.value)
        shapes += _bar(frame, mark, left)
        shapes.append(_shape(mark.kind, left, up, size, element("title", mark.tooltip)))
    shown = [kind for kind in names if any(mark.kind == kind for mark in marks)]
    key = charts.key_of([names[kind] for kind in shown], [_shape(kind, 13, 6, 4.0, None) for kind in shown])
    counts = ", ".join(f"{sum(mark.kind == kind for mark in marks)} {names[kind]}" for kind in shown)
    drawn = charts.figure(frame, title, counts, shapes, key)
    return element("div", drawn, class_="timeline")


def _dates(dates: Sequence[datetime.date]) -> Axis:
    first, last = dates[0].toordinal(), dates[-1].toordinal()
    step = max(1, -(-(last - first) // (LABELS - 1)))
    ticks = range(first, last + 1, step)
    names = [datetime.date.fromordinal(tick).isoformat() for tick in ticks]
    beside = max(0.5, (last - first) / 24)  # days of room for half a label
    return Axis("", first - beside, last + beside, ticks, names=names)


def _lines(frame: Frame, marks: Sequence[Mark]) -> Iterator[Html]:
    runs: list[list[str]] = [[]]
    for mark in marks:
        if mark.kind == "missing":
            runs.append([])
        elif mark.kind != "refused" and mark.value is not None:
            runs[-1].append(f"{frame.left(mark.date.toordinal())},{frame.up(mark.value)}")
    for run in runs:
        if len(run) > 1:
            yield element("polyline", points=" ".join(run), class_="line c0")


def _bar(frame: Frame, mark: Mark, left: float) -> Iterator[Html]:
    if mark.low is not None and mark.high is not None and mark.low < mark.high:
        yield element("line", x1=left, x2=left, y1=frame.up(mark.low), y2=frame.up(mark.high), class_="interval")


def _shape(kind: Kind, left: float, up: float, size: float, tooltip: Html | None) -> Html:
    if kind == "missing":
        top, height = (TOP, FLOOR - TOP) if up == FLOOR else (0, 2 * up)  # the height of the chart, or of its key
        return element("rect", tooltip, x=round(left - size / 2, 1), y=top, width=size, height=height, class_="gap")
    if kind == "refused":
        arms = f"M{left - size} {up - size}l{2 * size} {2 * size}m0 {-2 * size}l{-2 * size} {2 * size}"
        return element("path", tooltip, d=arms, class_="cross")
    if kind == "changed":
        wide = size * 1.6
        return element(
            "path", tooltip, d=f"M{left} {up - wide}l{wide} {wide}l{-wide} {wide}l{-wide} {-wide}z", class_="turn"
        )
    return element("circle", tooltip, cx=left, cy=up, r=size, class_="dot")
