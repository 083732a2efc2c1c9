"""Line charts and histograms as inline SVG. Tooltips show the values. Screen readers read a description."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dim.report.markup import Html, element

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, FLOOR = 60, 12, 8, HEIGHT - 40
_DASHES = ("none", "7 4", "2 3", "9 3 2 3")  # stroke-dasharray of successive lines, which also differ in colour


@dataclass(frozen=True)
class Axis:
    """An axis of a chart from `low` to `high`."""

    title: str
    low: float
    high: float
    ticks: Sequence[float]  # the values that are marked
    form: str = "g"  # the format specification of ticks without names
    logarithmic: bool = False  # then `low` must be above 0
    names: Sequence[str] = ()  # the text at each tick; if empty, the number

    def share(self, value: float) -> float:
        """The position of `value` between low (0) and high (1)."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / ((high - low) or 1)

    def named(self) -> Iterator[tuple[float, str]]:
        """Each tick with the text at it."""
        return zip(self.ticks, self.names or [format(tick, self.form) for tick in self.ticks], strict=True)


def axis(title: str, values: Iterable[float], form: str = "g", zero: bool = True) -> Axis:
    """A linear axis that covers the finite `values`, and 0 if `zero`. Its ticks are round numbers."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * nice for nice in (1, 2, 5, 10) if span / (power * nice) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [number * step for number in range(first, max(last, first + 1) + 1)]
    return Axis(title, ticks[0], ticks[-1], ticks, form)


def numbers(title: str, last: int) -> Axis:
    """An axis of whole numbers from 1 to `last`."""
    step = -(-max(1, last - 1) // 6)
    return Axis(title, 1, max(2, last), range(1, max(2, last) + 1, step))


def shares(title: str) -> Axis:
    """An axis from 0 to 1."""
    return Axis(title, 0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1))


@dataclass(frozen=True)
class Frame:
    """The coordinate system of a chart: maps values to SVG coordinates and draws the axes."""

    x: Axis
    y: Axis
    width: int = WIDTH

    def left(self, value: float) -> float:
        """The x coordinate of `value`."""
        return round(LEFT + self.x.share(value) * (self.width - LEFT - RIGHT), 1)

    def up(self, value: float) -> float:
        """The y coordinate of `value`."""
        return round(FLOOR - self.y.share(value) * (FLOOR - TOP), 1)

    def axes(self) -> Iterator[Html]:
        """Both axes, their ticks and titles."""
        for tick, text in self.y.named():
            up = self.up(tick)
            yield element("line", x1=LEFT, x2=self.width - RIGHT, y1=up, y2=up, class_="grid")
            yield element("text", text, x=LEFT - 8, y=up + 4, class_="tick end")
        for tick, text in self.x.named():
            yield element("text", text, x=self.left(tick), y=FLOOR + 16, class_="tick middle")
        middle = (TOP + FLOOR) / 2
        yield element("text", self.x.title, x=(LEFT + self.width - RIGHT) / 2, y=HEIGHT - 6, class_="title middle")
        yield element("text", self.y.title, x=11, y=middle, class_="title middle", transform=f"rotate(-90 11 {middle})")


@dataclass(frozen=True)
class Line:
    """A named line through (x, y)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Bars:
    """A named count for each bin of a histogram."""

    name: str
    counts: Sequence[float]


def lines(title: str, x: Axis, y: Axis, drawn: Sequence[Line]) -> Html:
    """A chart of one or more lines."""
    frame = Frame(x, y)
    parts = [part for number, line in enumerate(drawn) for part in _line(frame, line, number)]
    ends = "; ".join(f"{line.name} ends at {line.y[-1]:.3g}" for line in drawn if line.y)
    shapes = [element("path", d="M0 6H26", class_=f"line c{n}", stroke_dasharray=_dashes(n)) for n in range(len(drawn))]
    key = key_of([line.name for line in drawn], shapes)
    return figure(frame, title, f"{y.title} by {x.title}. {ends}", parts, key)


def bars(title: str, x: Axis, edges: Sequence[float], drawn: Sequence[Bars]) -> Html:
    """Histograms of queries, side by side. Each has B counts, one per bin. The bins lie between B + 1 `edges`."""
    frame = Frame(x, axis("queries", [count for shown in drawn for count in shown.counts]))
    parts = [part for n, shown in enumerate(drawn) for part in _bars(frame, edges, shown, n, len(drawn))]
    counts = "; ".join(f"{shown.name}: {', '.join(f'{count:g}' for count in shown.counts)}" for shown in drawn)
    shapes = [element("rect", x=4, y=1, width=14, height=10, class_=f"bar c{n}") for n in range(len(drawn))]
    key = key_of([shown.name for shown in drawn], shapes)
    return figure(frame, title, f"Counts from {edges[0]:g} to {edges[-1]:g}: {counts}", parts, key)


def _dashes(number: int) -> str:
    return _DASHES[number % len(_DASHES)]


def _line(frame: Frame, line: Line, number: int) -> Iterator[Html]:
    places = [(frame.left(x), frame.up(y)) for x, y in zip(line.x, line.y, strict=True)]
    points = " ".join(f"{left},{up}" for left, up in places)
    yield element("polyline", points=points, class_=f"line c{number}", stroke_dasharray=_dashes(number))
    for (left, up), x, y in zip(places, line.x, line.y, strict=True):
        tooltip = element("title", f"{line.name}: {y:.3g} at {x:g}")
        yield element("circle", tooltip, cx=left, cy=up, r=3, class_=f"point c{number}")


def _bars(frame: Frame, edges: Sequence[float], shown: Bars, number: int, of: int) -> Iterator[Html]:
    for (low, high), count in zip(itertools.pairwise(edges), shown.counts, strict=True):
        width = (frame.left(high) - frame.left(low) - 2) / of
        left, up = frame.left(low) + 1 + number * width, frame.up(count)
        tooltip = element("title", f"{shown.name}: {count:g} from {low:g} to {high:g}")
        size = {"x": round(left, 1), "y": up, "width": round(width, 1), "height": round(FLOOR - up, 1)}
        yield element("rect", tooltip, class_=f"bar c{number}", **size)


def key_of(names: Sequence[str], shapes: Sequence[Html]) -> Html | None:
    """The key of a chart: the name and an SVG sample (26 × 12) of each series. None for fewer than two series."""
    if len(names) < 2:
        return None
    drawn = [element("svg", shape, viewBox="0 0 26 12", aria_hidden="true") for shape in shapes]
    items = [element("li", shape, element("bdi", name)) for name, shape in zip(names, drawn, strict=True)]
    return element("ul", items, class_="key")


def figure(frame: Frame, title: str, description: str, parts: Iterable[Html], key: Html | None) -> Html:
    """A chart with the axes of `frame` and `parts` inside; screen readers read out the `description`."""
    size, label = f"0 0 {frame.width} {HEIGHT}", f"{title}: {description}"
    drawing = element("svg", frame.axes(), parts, viewBox=size, role="img", aria_label=label)
    return element("figure", element("figcaption", title), drawing, key, class_="chart")


def grid(*charts: Html) -> Html:
    """Charts side by side, as many as fit in a row."""
    return element("div", charts, class_="charts")
