"""The randomization test: against all choices of signs, against SciPy's, and its rate of false alarms."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from dim.evaluate import comparison, significance
from dim.evaluate.significance import MeanDifference, paired_test, smallest_p

ALPHA, TRIALS = 0.05, 2000


def of_queries(before, after, **options):
    """Each query by itself."""
    return paired_test(before, after, np.arange(len(before)), **options)


def clustered(generator, objects, queries_each, effect=0.0, shared=0.9):
    """Differences (queries,) and their objects: much of each is its object's. Which system is better of an object is
    a coin's toss, but for the `effect`."""
    own = generator.exponential(0.05, objects) * generator.choice([-1, 1], objects)
    differences = shared * np.repeat(own, queries_each) + generator.normal(0, 0.02, objects * queries_each)
    return differences + effect, np.repeat(np.arange(objects), queries_each)


def refused(generator, objects, queries_each, *, effect=0.0, by_object=True):
    """How often a fall is called real, in TRIALS trials."""
    found = 0
    for _ in range(TRIALS):
        differences, of = clustered(generator, objects, queries_each, effect)
        of = of if by_object else np.arange(len(differences))
        change = paired_test(np.full(len(differences), 0.5), 0.5 + differences, of, resamples=199)
        found += change.difference < 0 and change.p_fall <= ALPHA
    return found / TRIALS


def test_equals_a_loop_over_all_signs():
    generator = np.random.default_rng(0)
    before, after = generator.random((2, 20))
    objects = np.repeat(np.arange(7), [1, 5, 2, 3, 4, 4, 1])
    sums = np.array([(after - before)[objects == number].sum() for number in range(7)])
    observed = sums.sum()
    turned = [sums @ signs for signs in itertools.product([1, -1], repeat=7)]
    found = paired_test(before, after, objects)
    assert found.p_value == pytest.approx(np.mean(np.abs(turned) >= abs(observed) - 1e-12))
    assert found.objects == 7


def test_the_interval_is_of_all_differences_that_are_not_rejected():
    generator = np.random.default_rng(1)
    before, after = generator.random((2, 27))
    objects = np.repeat(np.arange(9), 3)
    found = paired_test(before, after, objects)
    for bound, sign in ((found.low, -1), (found.high, 1)):
        assert paired_test(before, after - bound - sign * 1e-6, objects).p_value <= 0.05
        assert paired_test(before, after - bound + sign * 1e-6, objects).p_value > 0.05


def test_the_interval_of_a_mean_equals_a_loop_over_all_sets_of_objects():
    generator = np.random.default_rng(2)
    values, objects = generator.random(30), generator.permutation(np.repeat(np.arange(8), [1, 9, 2, 5, 4, 4, 3, 2]))
    sets = [chosen for size in range(1, 9) for chosen in itertools.combinations(range(8), size)]
    means = sorted(np.mean(values[np.isin(objects, chosen)]) for chosen in sets)
    # Of the 255 means, 6 lie below and 6 above: 7 / 256 is the largest share up to 2.5 %.
    assert significance.interval_of_mean(values, objects) == pytest.approx((means[5], means[-6]))
    assert significance.interval_of_mean(values, objects % 5) == (0, 1)


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    generator, covered = np.random.default_rng(4), 0
    for _ in range(TRIALS):
        level = np.repeat(generator.beta(4, 2, 10), 4)  # of an object; its mean is 2 / 3
        low, high = significance.interval_of_mean(
            np.clip(level + generator.normal(0, 0.05, 40), 0, 1), np.arange(40) // 4
        )
        covered += low <= 2 / 3 <= high
    assert 0.92 < covered / TRIALS < 0.98


@pytest.mark.parametrize("objects", [6, 12, 40])
def test_agrees_with_scipy(objects):
    generator = np.random.default_rng(objects)
    differences, of = clustered(generator, objects, 4, -0.01)
    sums = np.bincount(of, differences)
    known = stats.permutation_test(
        (sums, np.zeros(objects)), lambda a, b: np.sum(a - b), permutation_type="samples", alternative="less",
        n_resamples=20_000, rng=np.random.default_rng(0),
    )  # fmt: skip
    found = paired_test(np.zeros(len(of)), differences, of, resamples=20_000)
    assert found.p_fall == pytest.approx(known.pvalue, abs=1e-9 if objects <= 12 else 0.01)


@pytest.mark.parametrize(("objects", "queries_each"), [(24, 1), (100, 1), (500, 1), (6, 4), (25, 4), (125, 4)])
def test_where_nothing_differs_it_refuses_no_more_often_than_it_says(objects, queries_each):
    assert refused(np.random.default_rng(objects), objects, queries_each) <= 1.2 * ALPHA


def test_taking_queries_of_one_object_for_independent_would_refuse_far_more_often():
    assert refused(np.random.default_rng(25), 25, 4, by_object=False) > 2.5 * ALPHA


@pytest.mark.parametrize(("objects", "effect"), [(25, -0.04), (125, -0.012)])
def test_finds_a_fall_as_often_as_a_t_test_of_the_means_of_objects(objects, effect):
    found = refused(np.random.default_rng(7), objects, 4, effect=effect)
    generator = np.random.default_rng(7)
    trials = np.array([clustered(generator, objects, 4, effect)[0] for _ in range(TRIALS)])
    means = trials.reshape(TRIALS, objects, 4).mean(axis=2)
    known = np.mean(stats.ttest_1samp(means, 0, axis=1, alternative="less").pvalue <= ALPHA)
    assert 0.5 < known < 0.99
    assert found > known - 0.03


def test_agrees_with_the_normal_interval_of_many_queries():
    generator = np.random.default_rng(3)
    before = generator.random(2000)
    after = before + generator.normal(0.01, 0.2, 2000)
    found = of_queries(before, after)
    error = (after - before).std() / np.sqrt(2000)
    assert found.low == pytest.approx(found.difference - 1.96 * error, abs=error / 10)
    assert found.high == pytest.approx(found.difference + 1.96 * error, abs=error / 10)


def test_the_same_seed_gives_the_same_whatever_is_held_in_memory(monkeypatch):
    values = np.random.default_rng(0).random((2, 50))
    whole = of_queries(*values, resamples=500)
    assert whole == of_queries(*values, resamples=500)
    assert whole != of_queries(*values, resamples=500, seed=1)
    monkeypatch.setattr(significance, "_CELLS", 700)
    assert of_queries(*values, resamples=500) == whole


@pytest.mark.parametrize("count", [3, 10, 60])
def test_no_difference_is_no_evidence_and_one_in_every_object_is_all_there_can_be(count):
    values = np.linspace(0, 0.9, count)
    assert of_queries(values, values) == MeanDifference(0, 0, 0, 1, count)
    worse = of_queries(values + 0.1, values, resamples=99)
    assert worse.p_fall == pytest.approx(max(smallest_p(count), 1 / 100 if count == 60 else 0))
    bounds = (-0.1, -0.1) if count > 5 else (-1, 1)  # of three objects nothing can be said
    assert (worse.low, worse.high) == pytest.approx(bounds)
    assert worse.bounded == (count > 5)
    told = "95 % interval -0.1000 to -0.1000" if count > 5 else "3 objects are too few for a 95 % interval"
    assert worse.interval_in_words() == told


def test_the_opposite_comparison_is_its_mirror_image():
    before, after = np.random.default_rng(5).random((2, 80))
    objects = np.arange(80) // 2
    there, back = paired_test(before, after, objects), paired_test(after, before, objects)
    assert (there.difference, there.low, there.high) == pytest.approx((-back.difference, -back.high, -back.low))
    assert there.p_value == back.p_value
    assert there.p_fall + back.p_fall == pytest.approx(1)


def test_objects_are_those_of_the_labels_that_are_known_now():
    rows = [("a", "x"), ("b", "x"), ("c", None), ("d", None), ("e", "a")]  # a label may be called as a query is
    ids, labels = (pa.array(values, pa.string()) for values in zip(*rows, strict=True))
    before = pa.table({"query_id": ids, "label": pa.array(["once"] * 5), "ap": [0.5] * 5})
    after = pa.table({"query_id": ids, "label": labels, "ap": [0.6, 0.7, 0.4, 0.5, 0.9]})
    found = comparison.compare("before", before, "after", after)
    assert found.change.objects == 4
    assert {row["query_id"]: row["label"] for row in found.judged} == dict(rows)


@pytest.mark.parametrize(
    "wrong", [([], [], []), ([1.0], [1.0, 2.0], [0]), ([[1.0]], [[1.0]], [[0]]), ([np.nan], [1.0], [0]), ([1], [1], [])]
)
def test_what_is_not_paired_is_refused(wrong):
    with pytest.raises(ValueError, match="a paired test needs"):
        paired_test(*map(np.array, wrong))


@pytest.mark.parametrize("count", [1, 6, 13, 14, 40])
def test_the_least_p_value_is_that_of_a_fall_in_every_object(count):
    values = np.linspace(0.2, 0.9, count)
    assert of_queries(values, values - 0.1).p_fall == pytest.approx(smallest_p(count), rel=0.6)
    assert of_queries(values, values - 0.1).p_fall >= smallest_p(count)
