import itertools

import numpy as np
import pytest

from dim.evaluate import bootstrap
from dim.evaluate.bootstrap import paired


def test_equals_all_resamples_there_are():
    before, after = np.array([0.1, 0.4, 0.5, 0.2]), np.array([0.3, 0.35, 0.9, 0.2])
    difference = after - before
    means = [np.mean(drawn) for drawn in itertools.product(difference, repeat=4)]
    found = paired(before, after, resamples=200_000)
    assert found.difference == pytest.approx(difference.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.01)
    as_large = np.mean(np.abs(np.array(means) - difference.mean()) >= abs(difference.mean()))
    assert found.p_value == pytest.approx(as_large, abs=0.01)


def test_agrees_with_the_normal_interval_of_many_queries():
    generator = np.random.default_rng(3)
    before = generator.random(2000)
    after = before + generator.normal(0.01, 0.2, 2000)
    found = paired(before, after)
    error = (after - before).std() / np.sqrt(2000)
    assert found.low == pytest.approx(found.difference - 1.96 * error, abs=error / 10)
    assert found.high == pytest.approx(found.difference + 1.96 * error, abs=error / 10)


def test_the_same_seed_gives_the_same_whatever_is_held_in_memory(monkeypatch):
    values = np.random.default_rng(0).random((2, 50))
    whole = paired(*values, resamples=500)
    assert whole == paired(*values, resamples=500)
    assert whole != paired(*values, resamples=500, seed=1)
    monkeypatch.setattr(bootstrap, "_CELLS", 700)
    assert whole == paired(*values, resamples=500)


def test_no_difference_is_no_evidence_and_one_in_every_query_is_all_there_can_be():
    values = np.linspace(0, 0.9, 10)
    assert paired(values, values, resamples=99) == bootstrap.Interval(0, 0, 0, 1)
    better = paired(values, values + 0.1, resamples=99)
    assert (better.difference, better.low, better.high) == pytest.approx((0.1, 0.1, 0.1))
    assert better.p_value == pytest.approx(1 / 100)


def test_the_interval_of_the_opposite_comparison_is_its_mirror_image():
    before, after = np.random.default_rng(5).random((2, 80))
    there, back = paired(before, after), paired(after, before)
    assert (there.difference, there.low, there.high) == pytest.approx((-back.difference, -back.high, -back.low))
    assert there.p_value == back.p_value


@pytest.mark.parametrize("wrong", [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]]), ([np.nan], [1.0])])
def test_what_is_not_paired_is_refused(wrong):
    with pytest.raises(ValueError, match="a paired bootstrap needs"):
        paired(*map(np.array, wrong))
