"""A share, such as mAP, over dates as inline SVG: a line through what counts, and a mark for each date."""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dim.pages import charts
from dim.pages.charts import FLOOR, TOP, Axis, Frame
from dim.pages.html import Html, element

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


def chart(title: str, unit: str, marks: Sequence[Mark], names: dict[Kind, str]) -> Html:
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
