import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim.evaluate import metrics

CHECK_VALUES = [  # ranks, n_pos, trapezoid, finite sum
    ([0], 1, 1, 1),
    ([1], 1, 0.25, 0.5),
    ([0, 2], 2, 0.7916667, 0.8333333),
    ([0, 2, 5], 3, 0.6777778, 0.7222222),
    ([1, 3, 4], 4, 0.3041667, 0.4),
    ([9], 1, 0.05, 0.1),
    ([0, 1, 2], 5, 0.6, 0.6),
]
positions = st.lists(st.integers(0, 60), unique=True, max_size=20).map(sorted)


@pytest.mark.parametrize(("ranks", "n_pos", "trapezoid", "finite"), CHECK_VALUES)
def test_average_precision_has_the_check_values(ranks, n_pos, trapezoid, finite):
    assert metrics.average_precision(np.array(ranks), n_pos) == pytest.approx(trapezoid, abs=1e-7)
    assert metrics.finite_average_precision(np.array(ranks), n_pos) == pytest.approx(finite, abs=1e-7)


def compute_ap(listed, positive, junk):
    """The benchmark's compute_ap, line by line."""
    old_recall, old_precision, ap, hits, place = 0.0, 1.0, 0.0, 0, 0
    for item in listed:
        if item in junk:
            continue
        hits += item in positive
        recall, precision = hits / len(positive), hits / (place + 1)
        ap += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision, place = recall, precision, place + 1
    return ap


@given(positive=positions.filter(bool), junk=positions, missing=st.integers(0, 3))
def test_average_precision_and_junk_equal_the_benchmarks_loop(positive, junk, missing):
    junk = sorted(set(junk) - set(positive))
    ranks = metrics.without_junk(np.array(positive), np.array(junk, dtype=int))
    expected = compute_ap(range(61), {*positive, *range(100, 100 + missing)}, set(junk))
    assert metrics.average_precision(ranks, len(positive) + missing) == pytest.approx(expected, abs=1e-12)
    assert metrics.printed_average_precision(ranks, len(positive) + missing) == pytest.approx(expected, abs=1e-6)


@given(ranks=positions, missing=st.integers(0, 3), k=st.integers(1, 70))
def test_metrics_at_a_depth_equal_naive_loops(ranks, missing, k):
    n_pos, array = len(ranks) + missing, np.array(ranks, dtype=int)
    if n_pos == 0:
        return
    precisions = [(j + 1) / (rank + 1) for j, rank in enumerate(ranks)]
    finite = math.fsum(p for p, rank in zip(precisions, ranks, strict=True) if rank < k) / min(n_pos, k)
    at_r = math.fsum(p for p, rank in zip(precisions, ranks, strict=True) if rank < n_pos) / n_pos
    assert metrics.finite_average_precision(array, n_pos, k) == pytest.approx(finite, abs=1e-12)
    assert metrics.average_precision_at_r(array, n_pos) == pytest.approx(at_r, abs=1e-12)
    assert metrics.recall_at(array, n_pos, k) == float(any(rank < k for rank in ranks))
    assert metrics.ns_score(array, n_pos) == sum(rank < 4 for rank in ranks)
    depth = min(max((rank + 1 for rank in ranks), default=k), k)
    expected = sum(rank + 1 <= depth for rank in ranks) / depth
    assert metrics.precision_at(array, n_pos, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "metric",
    [
        metrics.average_precision,
        metrics.printed_average_precision,
        metrics.finite_average_precision,
        metrics.average_precision_at_r,
        metrics.ns_score,
        lambda ranks, n_pos: metrics.recall_at(ranks, n_pos, 1),
        lambda ranks, n_pos: metrics.precision_at(ranks, n_pos, 10),
    ],
)
def test_without_positives_there_is_no_value_and_unfound_ones_give_zero(metric):
    nothing = np.zeros(0, dtype=int)
    assert metric(nothing, 0) is None
    assert metric(nothing, 2) == 0.0


def test_mean_leaves_out_what_is_none():
    assert metrics.mean([1.0, None, 0.0]) == 0.5
    assert metrics.mean([None]) is None
