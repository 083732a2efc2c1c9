"""How sure a difference of means is: the paired randomisation test, by object, and the interval that goes with it.

Two systems answer the same queries; d_i is query i's measure after less before, and d̄ their mean. Queries that show one
object rise and fall together, so that what is exchanged is an object with all its queries, not a query: with object c's
sum S_c of d_i over its n_c queries, d̄ = Σ S_c / Σ n_c. Were neither system better, either could have given either
answers of an object: every choice of signs of the S_c would have been as likely as the observed one. A fall is as
extreme as the observed one where a set A of objects, whose signs are turned, has Σ_A S_c ≥ 0, so that over all sets

    p(fall) = (1 + #{A: Σ_A S_c ≥ 0}) / (1 + number of sets)        and p_value = 2 min(p(fall), p(rise)), two-sided

The 1 is the empty set, which is what was observed. The test is exact: it gives false alarms no more often than it
says, however few the objects and however many queries each of them has. (Fisher's randomisation test; for retrieval:
Smucker, Allan and Carterette, CIKM 2007. That clusters must be drawn whole: Cameron, Gelbach and Miller,
Bootstrap-Based Improvements for Inference with Clustered Errors, 2008; Field and Welsh, Bootstrapping Clustered Data,
2007. The percentile bootstrap of few clusters is too narrow, which is why it is not used here.)

The 95 % interval is all δ that this test does not reject when each d_i is δ too large: as Σ_A (S_c − n_c δ) ≥ 0 means
that A's mean Σ_A S_c / Σ_A n_c is at least δ, it runs between the 2.5 % and the 97.5 % quantiles of the means of random
sets of objects (Hartigan, Using Subsample Values as Typical Values, JASA 1969). It leaves out 0 where p_value ≤ 0.05.

All sets are taken where these are few, else `resamples` random ones, which give no one-sided p below
1 / (1 + `resamples`). n objects can't give one below 1 / 2ⁿ: of fewer than 5 objects none at 0.05, of fewer than 6 no
95 % interval but −1 to 1, all that a difference of AP can be.
"""

from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
WIDEST = 1.0  # a difference of two values from 0 to 1
RESAMPLES = 10000
_ALL_SETS = 13  # objects, of which all 2^13 sets are taken
_CELLS = 2**22  # objects of sets in memory at once


@dataclass(frozen=True)
class Interval:
    """The mean difference, its 95 % interval from `low` to `high`, and the two-sided `p_value` of no difference;
    `objects` is how many were exchanged.
    """

    difference: float
    low: float
    high: float
    p_value: float
    objects: int

    @property
    def p_fall(self) -> float:
        """The one-sided p-value of a fall. The test is symmetric: that of a fall is half the two-sided one."""
        return self.p_value / 2 if self.difference < 0 else 1 - self.p_value / 2

    @property
    def bounded(self) -> bool:
        """Whether there are objects enough for an interval."""
        return self.high - self.low < 2 * WIDEST

    def told(self) -> str:
        """The interval in words."""
        if not self.bounded:
            return f"{self.objects} objects are too few for a 95 % interval"
        return f"95 % interval {self.low:+.4f} to {self.high:+.4f}"


def least_p(objects: int) -> float:
    """The least one-sided p-value that so many objects can give, be the fall as great as it may."""
    return float(0.5**objects) if objects <= _ALL_SETS else 1 / (1 + RESAMPLES)


def paired(
    before: np.ndarray, after: np.ndarray, objects: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """The mean of `after` − `before`, both (n,), values from 0 to 1, and how sure it is.

    `objects` (n,) says which object each query shows. The same `seed` gives the same interval. Raises ValueError where
    the shapes differ, there is no query or a value is not finite.
    """
    before, after, objects = np.asarray(before, np.float64), np.asarray(after, np.float64), np.asarray(objects)
    if before.ndim != 1 or not before.shape == after.shape == objects.shape or not len(before):
        raise ValueError(
            f"a paired test needs two values and an object of each query, not {before.shape}, {after.shape} and "
            f"{objects.shape}"
        )
    difference = after - before
    if not np.isfinite(difference).all():
        raise ValueError("a paired test needs finite values; leave out the queries that have none")
    _, object_of = np.unique(objects, return_inverse=True)
    sums, sizes = np.bincount(object_of, difference), np.bincount(object_of)
    mean = float(difference.mean())
    if not difference.any():  # nothing to be unsure of
        return Interval(mean, mean, mean, 1.0, len(sums))
    means = np.sort(_means_of_sets(sums, sizes, seed, resamples))
    close = 1e-12  # sums of the same values in another order
    p_fall, p_rise = ((1 + np.count_nonzero(sign * means >= -close)) / (1 + len(means)) for sign in (1, -1))
    low, high = _quantiles(means)
    return Interval(mean, low, high, float(min(1.0, 2 * p_fall, 2 * p_rise)), len(sums))


def _quantiles(means: np.ndarray) -> tuple[float, float]:
    """The bounds of all differences that the test doesn't reject, of the sorted `means` of sets."""
    beyond = int((1 - CONFIDENCE) / 2 * (1 + len(means)) + 1e-9) - 1  # means that may lie beyond either bound
    if beyond < 0:
        return -WIDEST, WIDEST
    return float(means[beyond]), float(means[-1 - beyond])


def _means_of_sets(sums: np.ndarray, sizes: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """The mean difference of sets of objects, of all but the empty one or of random ones."""
    count = len(sums)
    if count <= _ALL_SETS:
        every = np.arange(1, 2**count)[:, None] >> np.arange(count) & 1
        return np.asarray(every @ sums / (every @ sizes))
    generator = np.random.default_rng(seed)
    step, width = max(1, _CELLS // count), 4 * -(-count // 32)  # bytes a set; the generator makes four at a time
    parts = []
    for start in range(0, resamples, step):
        drawn = np.frombuffer(generator.bytes(min(step, resamples - start) * width), np.uint8)
        taken = np.unpackbits(drawn.reshape(-1, width), axis=1, count=count)
        some = taken[taken.any(axis=1)].astype(np.float64)
        parts.append(some @ sums / (some @ sizes))
    return np.concatenate(parts)
