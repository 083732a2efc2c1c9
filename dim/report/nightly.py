"""A share, such as mAP, over dates as inline SVG: a line through what counts, and a mark for each date.

All nights on a page, `trend.html`: mAP night by night, what was refused or missed, and the way to each report.
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
from dim.report.page import Html, Page, element, name
from dim.report.parts import Column

WIDTH = 1000
LABELS = 8  # dates that are written at most
CROWDED = 90  # dates beyond which marks are small
LEAST = 0.05  # of a share, what the value axis takes in, so that a change that is none doesn't look like one

Kind = Literal["kept", "changed", "refused", "missing"]


@dataclass(frozen=True)
class Mark:
    """A date: its `value`, with a bar from `low` to `high` where these differ; `told` shows under the pointer. The line
    goes through the "kept" and the "changed", and ends where one is "missing", which has no value.
    """

    date: datetime.date
    kind: Kind
    told: str
    value: float | None = None
    low: float | None = None
    high: float | None = None


def timeline(title: str, unit: str, marks: Sequence[Mark], names: dict[Kind, str]) -> Html:
    """A chart of `marks`, by date; `names` says what each kind means, and `unit` what is measured."""
    values = [value for mark in marks for value in (mark.value, mark.low, mark.high) if value is not None]
    if values:
        middle = (min(values) + max(values)) / 2
        values += [middle - LEAST / 2, middle + LEAST / 2]
    frame = Frame(_dates([mark.date for mark in marks]), charts.axis(unit, values, zero=False), WIDTH)
    size = 4.0 if len(marks) <= CROWDED else 2.0
    parts = [*_lines(frame, marks)]
    for mark in marks:
        left = frame.left(mark.date.toordinal())
        up = FLOOR if mark.value is None else frame.up(mark.value)
        parts += _bar(frame, mark, left)
        parts.append(_shape(mark.kind, left, up, size, element("title", mark.told)))
    shown = [kind for kind in names if any(mark.kind == kind for mark in marks)]
    key = charts.key_of([names[kind] for kind in shown], [_shape(kind, 13, 6, 4.0, None) for kind in shown])
    counts = ", ".join(f"{sum(mark.kind == kind for mark in marks)} {names[kind]}" for kind in shown)
    drawn = charts.figure(frame, title, counts, parts, key)
    return element("div", drawn, class_="timeline")


def _dates(dates: Sequence[datetime.date]) -> Axis:
    first, last = dates[0].toordinal(), dates[-1].toordinal()
    step = max(1, -(-(last - first) // (LABELS - 1)))
    ticks = range(first, last + 1, step)
    names = [datetime.date.fromordinal(tick).isoformat() for tick in ticks]
    beside = max(0.5, (last - first) / 24)  # room for half a label
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


def _shape(kind: Kind, left: float, up: float, size: float, told: Html | None) -> Html:
    if kind == "missing":
        top, height = (TOP, FLOOR - TOP) if up == FLOOR else (0, 2 * up)  # through the chart, or through its key
        return element("rect", told, x=round(left - size / 2, 1), y=top, width=size, height=height, class_="gap")
    if kind == "refused":
        arms = f"M{left - size} {up - size}l{2 * size} {2 * size}m0 {-2 * size}l{-2 * size} {2 * size}"
        return element("path", told, d=arms, class_="cross")
    if kind == "changed":
        wide = size * 1.6
        return element(
            "path", told, d=f"M{left} {up - wide}l{wide} {wide}l{-wide} {wide}l{-wide} {-wide}z", class_="turn"
        )
    return element("circle", told, cx=left, cy=up, r=size, class_="dot")


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
    chart = timeline(title, "mAP", marks, NAMES)
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
