"""The timeline: places of the marks, ends of the line, and readable labels for few and many dates."""

import datetime
import itertools
import re

import pytest

from dim.report import charts, nightly
from dim.report.nightly import Mark

NAMES = {"kept": "accepted", "changed": "another network", "refused": "refused", "missing": "missed"}


def marks(*kinds):
    start = datetime.date(2026, 1, 30)
    return [
        Mark(start + datetime.timedelta(number), kind, f"night {number}", None if kind == "missing" else 0.5)
        for number, kind in enumerate(kinds)
    ]


def drawn(*kinds):
    return nightly.timeline("mAP by night", "mAP", marks(*kinds), NAMES)


def runs(chart):
    return [len(points.split()) for points in re.findall(r'<polyline points="([^"]+)"', chart)]


def test_the_line_goes_through_what_was_accepted_and_ends_where_a_night_is_missing():
    chart = drawn("kept", "kept", "refused", "changed", "missing", "kept", "missing", "kept", "kept")
    assert runs(chart) == [3, 2]
    body, key = chart.split('<ul class="key">')
    counts = {shape: body.count(f'class="{shape}"') for shape in ("dot", "turn", "cross", "gap")}
    assert counts == {"dot": 5, "turn": 1, "cross": 1, "gap": 2}
    assert "5 accepted, 1 another network, 1 refused, 2 missed" in body  # for those who don't see it
    assert [key.count(name) for name in NAMES.values()] == [1, 1, 1, 1]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 40, 400, 3000])
def test_few_dates_are_written_and_none_beside_the_chart(count):
    chart = drawn(*["kept"] * count)
    ticks = re.findall(r'x="([\d.]+)"[^>]*class="tick middle">(\d{4}-\d\d-\d\d)<', chart)
    assert 1 <= len(ticks) <= nightly.LABELS
    assert ticks[0][1] == "2026-01-30"
    places = [float(left) for left, _ in ticks]
    assert min(places) >= charts.LEFT + 30 or count == 1
    assert max(places) <= nightly.WIDTH - 30
    assert all(after - before > 90 for before, after in itertools.pairwise(places))
    circles = [float(left) for left in re.findall(r'<circle cx="([\d.]+)"', chart.split("<ul")[0])]
    assert len(circles) == count and circles == sorted(circles)


def test_a_change_of_a_thousandth_does_not_fill_the_chart():
    day = datetime.date(2026, 1, 1)
    chart = nightly.timeline(
        "t", "mAP", [Mark(day, "kept", "", 0.5), Mark(day.replace(day=2), "kept", "", 0.501)], NAMES
    )
    heights = [float(up) for up in re.findall(r'cy="([\d.]+)"', chart)]
    assert 0 < heights[0] - heights[1] < 10


def test_an_interval_is_drawn_where_there_is_one():
    day = datetime.date(2026, 1, 1)
    with_one = Mark(day, "refused", "<b>", 0.5, 0.4, 0.6)
    chart = nightly.timeline("t", "mAP", [with_one], NAMES)
    (low, high) = re.search(r'y1="([\d.]+)" y2="([\d.]+)" class="interval"', chart).groups()
    assert float(low) > float(high) >= charts.TOP
    assert "&lt;b&gt;" in chart and "<b>" not in chart
    assert "interval" not in drawn("kept", "refused")


def test_dates_without_any_value_are_drawn():
    assert runs(drawn("missing", "missing")) == []
