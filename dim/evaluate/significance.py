"""Whether a difference between two mean measures can be chance: a paired randomization test by object.

Two systems, "before" and "after", answer the same queries. Let d_i be the measure of query i after minus the measure
before, and let d̄ be the mean of all d_i. The d_i of queries that show the same object tend to have the same sign. The
test therefore reverses the signs of all queries of an object together. Let S_c be the sum of d_i over the n_c queries
of object c. Then d̄ = Σ S_c / Σ n_c. If neither system is better, S_c and −S_c are equally likely. Reversing the signs
for a set A of objects gives a d̄ no higher than the observed one if and only if Σ_A S_c ≥ 0. Counted over all non-empty
sets A, the p-values are

    p(fall) = (1 + #{A: Σ_A S_c ≥ 0}) / (1 + number of sets)        p_value = 2 min(p(fall), p(rise)), two-sided

where the 1 counts the observed signs. p(rise) is p(fall) with ≤ in place of ≥. The test is exact: with any number of
objects and queries, it rejects a true null hypothesis no more often than its level says.

The 95 % interval contains every δ for which the test, applied to d_i − δ, doesn't reject at 0.05. Σ_A (S_c − n_c δ) is
≥ 0 if and only if δ is at most Σ_A S_c / Σ_A n_c, the mean of A. The bounds are therefore the 2.5 % and 97.5 %
quantiles of the sets' means. The interval excludes 0 if p_value ≤ 0.05. It is a bootstrap over objects, in which each
object is drawn never or once (in the usual bootstrap, it is drawn 0, 1, 2, … times).

With up to 13 objects, all sets are used. n objects then give no one-sided p-value below 1 / 2ⁿ. So fewer than 5 objects
are never significant at 0.05, one-sided. Fewer than 6 objects have the 95 % interval from −1 to 1, which contains every
difference of AP. With more than 13 objects, random sets are used. No one-sided p-value is then below
1 / (1 + `resamples`).

Sources: Smucker, Allan and Carterette, CIKM 2007, describe the test for retrieval. Cameron, Gelbach and Miller,
Bootstrap-Based Improvements for Inference with Clustered Errors, 2008, and Field and Welsh, Bootstrapping Clustered
Data, 2007, draw whole clusters. Hartigan, Using Subsample Values as Typical Values, JASA 1969, derives the interval.
The percentile bootstrap isn't used, as its intervals are too narrow with few clusters.
"""

from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
WIDEST = 1.0  # the largest difference of two values from 0 to 1
RESAMPLES = 10000
_ALL_SETS = 13  # the most objects of which all sets are used; they have 2^13 sets
_CELLS = 2**22  # the most sets × objects in memory at once


@dataclass(frozen=True)
class MeanDifference:
    """The result of a test: the mean difference, after minus before, with its interval and p-value."""

    difference: float
    low: float  # bounds of the 95 % interval
    high: float
    p_value: float  # two-sided, of the hypothesis that there is no difference
    objects: int  # number of objects that the queries show

    @property
    def p_fall(self) -> float:
        """The one-sided p-value of a fall: half of the two-sided `p_value` if the mean fell, else 1 minus that half."""
        return self.p_value / 2 if self.difference < 0 else 1 - self.p_value / 2

    @property
    def bounded(self) -> bool:
        """Whether there were enough objects for an interval."""
        return self.high - self.low < 2 * WIDEST

    def interval_in_words(self) -> str:
        """The interval as messages and pages write it."""
        if not self.bounded:
            return f"{self.objects} objects are too few for a 95 % interval"
        return f"95 % interval {self.low:+.4f} to {self.high:+.4f}"


def smallest_p(objects: int) -> float:
    """The smallest one-sided p-value that the test can give with this number of objects."""
    return float(0.5**objects) if objects <= _ALL_SETS else 1 / (1 + RESAMPLES)


def paired_test(
    before: np.ndarray, after: np.ndarray, objects: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES
) -> MeanDifference:
    """Tests the mean of `after` − `before` against 0. Each is float (n,): the value, 0 to 1, of each query.

    Queries with equal entries in `objects` (n,) show the same object. If there are too many objects to use all sets,
    `resamples` random sets are drawn by `seed`. Raises ValueError if the shapes differ, there is no query, or a value
    is not finite.
    """
    before, after, objects = np.asarray(before, np.float64), np.asarray(after, np.float64), np.asarray(objects)
    if before.ndim != 1 or not before.shape == after.shape == objects.shape or not len(before):
        raise ValueError(
            f"a paired test needs two values and an object for each query, not {before.shape}, {after.shape} and "
            f"{objects.shape}"
        )
    difference = after - before
    if not np.isfinite(difference).all():
        raise ValueError("a paired test needs finite values; leave out the queries that have none")
    _, object_of = np.unique(objects, return_inverse=True)
    sums, sizes = np.bincount(object_of, difference), np.bincount(object_of)
    mean = float(difference.mean())
    if not difference.any():
        return MeanDifference(mean, mean, mean, 1.0, len(sums))
    means = np.sort(_means_of_sets(sums, sizes, seed, resamples))
    rounding = 1e-12  # sums of the same values in different orders differ by less
    p_fall, p_rise = ((1 + np.count_nonzero(sign * means >= -rounding)) / (1 + len(means)) for sign in (1, -1))
    low, high = _quantiles(means)
    return MeanDifference(mean, low, high, float(min(1.0, 2 * p_fall, 2 * p_rise)), len(sums))


def interval_of_mean(values: np.ndarray, objects: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of `values` (n,), 0 to 1, of queries of `objects` (n,), as `paired_test` finds it.

    Fewer than 6 objects have the interval from 0 to 1.
    """
    found = paired_test(np.zeros(len(values)), values, objects)
    return max(found.low, 0.0), found.high


def _quantiles(means: np.ndarray) -> tuple[float, float]:
    """The bounds of the 95 % interval, from the sorted `means` of the sets."""
    beyond = int((1 - CONFIDENCE) / 2 * (1 + len(means)) + 1e-9) - 1  # number of means outside each bound
    if beyond < 0:
        return -WIDEST, WIDEST
    return float(means[beyond]), float(means[-1 - beyond])


def _means_of_sets(sums: np.ndarray, sizes: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """The mean difference of each set of objects. The sets are all sets but the empty one, or random sets."""
    count = len(sums)
    if count <= _ALL_SETS:
        every = np.arange(1, 2**count)[:, None] >> np.arange(count) & 1
        return np.asarray(every @ sums / (every @ sizes))
    generator = np.random.default_rng(seed)
    step, width = max(1, _CELLS // count), 4 * -(-count // 32)  # width: bytes per set, a multiple of 4
    parts = []
    for start in range(0, resamples, step):
        drawn = np.frombuffer(generator.bytes(min(step, resamples - start) * width), np.uint8)
        taken = np.unpackbits(drawn.reshape(-1, width), axis=1, count=count)
        some = taken[taken.any(axis=1)].astype(np.float64)
        parts.append(some @ sums / (some @ sizes))
    return np.concatenate(parts)
