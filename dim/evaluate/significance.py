"""Whether a difference between two mean measures can be chance: a paired randomization test by object.

Two systems answer the same queries. Let d_i be the measure of query i after, less its measure before, and d̄ the mean.
Queries that show the same object tend to rise and fall together, so the test exchanges whole objects, not queries. With
S_c the sum of d_i over the n_c queries of object c, d̄ = Σ S_c / Σ n_c. If neither system is better, the sign of each
S_c is as likely + as −. Turning the signs of a set A of objects gives a fall at least as large as the observed one iff
Σ_A S_c ≥ 0. Over all non-empty sets A, therefore,

    p(fall) = (1 + #{A: Σ_A S_c ≥ 0}) / (1 + number of sets)        p_value = 2 min(p(fall), p(rise)), two-sided

where the 1 counts the observed signs. The test is exact: with any number of objects and queries, it rejects a true
null hypothesis at most as often as its level says. The 95 % interval holds every δ that the test doesn't reject when
each d_i is reduced by δ. As Σ_A (S_c − n_c δ) ≥ 0 iff the mean of A, Σ_A S_c / Σ_A n_c, is at least δ, the bounds are
the 2.5 % and 97.5 % quantiles of the means of the sets. The interval excludes 0 if p_value ≤ 0.05.

With few objects, all sets are used. n objects then give no one-sided p-value below 1 / 2ⁿ: fewer than 5 are never
significant at 0.05, one-sided, and fewer than 6 have only the 95 % interval from −1 to 1, which holds every difference
of AP. With more objects, random sets are used, and no one-sided p-value is below 1 / (1 + `resamples`).

Sources: the test for retrieval, Smucker, Allan and Carterette, CIKM 2007. Drawing clusters whole, Cameron, Gelbach and
Miller, Bootstrap-Based Improvements for Inference with Clustered Errors, 2008, and Field and Welsh, Bootstrapping
Clustered Data, 2007. The interval, Hartigan, Using Subsample Values as Typical Values, JASA 1969. The percentile
bootstrap isn't used, as its intervals are too narrow with few clusters.
"""

from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
WIDEST = 1.0  # the largest difference of two values from 0 to 1
RESAMPLES = 10000
_ALL_SETS = 13  # all sets are used up to so many objects, so at most 2^13
_CELLS = 2**22  # sets × objects in memory at once


@dataclass(frozen=True)
class MeanDifference:
    """A tested mean difference, after less before."""

    difference: float
    low: float  # bounds of the 95 % interval
    high: float
    p_value: float  # two-sided, of the hypothesis that there is no difference
    objects: int  # that the test exchanged

    @property
    def p_fall(self) -> float:
        """The one-sided p-value of a fall. As the test is symmetric, it is half of `p_value` if there was a fall."""
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
    """The smallest one-sided p-value that the test can give with so many objects, however large the difference."""
    return float(0.5**objects) if objects <= _ALL_SETS else 1 / (1 + RESAMPLES)


def paired_test(
    before: np.ndarray, after: np.ndarray, objects: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES
) -> MeanDifference:
    """Tests the mean of `after` − `before` against 0. Both are float (n,): each query's value, 0 to 1, in one system.

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
    rounding = 1e-12  # of sums of the same values in different orders
    p_fall, p_rise = ((1 + np.count_nonzero(sign * means >= -rounding)) / (1 + len(means)) for sign in (1, -1))
    low, high = _quantiles(means)
    return MeanDifference(mean, low, high, float(min(1.0, 2 * p_fall, 2 * p_rise)), len(sums))


def _quantiles(means: np.ndarray) -> tuple[float, float]:
    """The bounds of the 95 % interval, from the sorted `means` of the sets."""
    beyond = int((1 - CONFIDENCE) / 2 * (1 + len(means)) + 1e-9) - 1  # means outside each bound
    if beyond < 0:
        return -WIDEST, WIDEST
    return float(means[beyond]), float(means[-1 - beyond])


def _means_of_sets(sums: np.ndarray, sizes: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """The mean difference of each set of objects: of all sets but the empty one, or of random sets."""
    count = len(sums)
    if count <= _ALL_SETS:
        every = np.arange(1, 2**count)[:, None] >> np.arange(count) & 1
        return np.asarray(every @ sums / (every @ sizes))
    generator = np.random.default_rng(seed)
    step, width = max(1, _CELLS // count), 4 * -(-count // 32)  # bytes per set; the generator makes four at a time
    parts = []
    for start in range(0, resamples, step):
        drawn = np.frombuffer(generator.bytes(min(step, resamples - start) * width), np.uint8)
        taken = np.unpackbits(drawn.reshape(-1, width), axis=1, count=count)
        some = taken[taken.any(axis=1)].astype(np.float64)
        parts.append(some @ sums / (some @ sizes))
    return np.concatenate(parts)
