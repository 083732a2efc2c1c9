import re

import pytest

from dim.report import charts
from dim.report.charts import Axis, Bars, Line


@pytest.mark.parametrize(
    ("values", "zero", "ticks"),
    [
        ([0.03, 0.11], True, [0, 0.05, 0.1, 0.15]),
        ([3, 17], True, [0, 5, 10, 15, 20]),
        ([-0.4, 0.2], True, [-0.4, -0.2, 0, 0.2]),
        ([0.61, 0.65], False, [0.61, 0.62, 0.63, 0.64, 0.65]),
        ([0, 0, float("nan")], True, [0, 0.2]),
        ([], True, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ([5, 5], False, [5, 6]),
    ],
)
def test_ticks_are_round_and_take_in_all_values(values, zero, ticks):
    assert charts.axis("x", values, zero=zero).ticks == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("last", "ticks"), [(1, [1, 2]), (3, [1, 2, 3]), (7, list(range(1, 8))), (20, [1, 5, 9, 13, 17])]
)
def test_whole_numbers_have_whole_ticks(last, ticks):
    assert list(charts.numbers("epoch", last).ticks) == ticks


def test_bars_are_as_high_as_their_counts():
    chart = charts.bars("AP", charts.shares("AP"), [0, 0.5, 1], [Bars("<a>", [2, 4]), Bars("b", [0, 1])])
    heights = [float(height) for height in re.findall(r'<rect class="bar[^>]* height="([\d.]+)"', chart)]
    floor = charts.FLOOR - charts.TOP
    assert heights == pytest.approx([share * floor for share in (2 / 4, 4 / 4, 0, 1 / 4)], abs=0.1)
    assert "&lt;a&gt;: 4 from 0.5 to 1" in chart


def test_lines_go_through_their_points_on_a_logarithmic_axis():
    x = Axis("k", 1, 100, (1, 10, 100), logarithmic=True)
    chart = charts.lines("recall", x, charts.shares("recall"), [Line("a", [1, 10, 100], [0, 0.5, 1])])
    points = [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]+)"', chart).group(1).split()]
    right, floor = charts.WIDTH - charts.RIGHT, charts.FLOOR
    middle = ((charts.LEFT + right) / 2, (floor + charts.TOP) / 2)
    assert points == [(charts.LEFT, floor), pytest.approx(middle, abs=0.1), (right, charts.TOP)]
    assert "a ends at 1" in chart
