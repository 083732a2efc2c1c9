"""How sure a difference of means is: the paired bootstrap over queries.

Two systems answer the same n queries; d_i is query i's measure after less before, and d̄ their mean. A resample draws n
of the d_i with replacement and has the mean d̄*. Over many resamples, the 95 % interval of d̄ runs from the 2.5 % to the
97.5 % quantile of d̄* (the percentile interval of Efron and Tibshirani, An Introduction to the Bootstrap, ch. 13).

The p-value asks how often chance alone gives as much: the d_i are shifted to a mean of zero, which is the hypothesis
of no difference, so that a resample has the mean d̄* − d̄, and

    p = (1 + #{|d̄* − d̄| ≥ |d̄|}) / (1 + resamples)

two-sided (the shift method of Smucker, Allan and Carterette, CIKM 2007; for retrieval first Sakai, SIGIR 2006; the 1
is that of Davison and Hinkley, Bootstrap Methods and their Application, ch. 4: what was observed is a possible sample).
"""

from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
_CELLS = 2**22  # draws in memory at once


@dataclass(frozen=True)
class Interval:
    """The mean difference, its 95 % interval from `low` to `high`, and the two-sided `p_value` of no difference."""

    difference: float
    low: float
    high: float
    p_value: float


def paired(before: np.ndarray, after: np.ndarray, *, seed: int = 0, resamples: int = 10000) -> Interval:
    """The mean of `after` − `before`, both (n,) and in the same order of queries, and how sure it is.

    The same `seed` gives the same interval. Raises ValueError where the shapes differ, there is no query or a value is
    not finite.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.ndim != 1 or before.shape != after.shape or not len(before):
        raise ValueError(f"a paired bootstrap needs two values of each query, not {before.shape} and {after.shape}")
    difference = after - before
    if not np.isfinite(difference).all():
        raise ValueError("a paired bootstrap needs finite values; leave out the queries that have none")
    mean = float(difference.mean())
    means = _resampled_means(difference, seed, resamples)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    as_large = np.count_nonzero(np.abs(means - mean) >= abs(mean))
    return Interval(mean, float(low), float(high), (1 + as_large) / (1 + resamples))


def _resampled_means(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _CELLS // len(values))
    for start in range(0, resamples, step):
        drawn = generator.integers(0, len(values), (min(step, resamples - start), len(values)))
        means[start : start + step] = values[drawn].mean(axis=1)
    return means
