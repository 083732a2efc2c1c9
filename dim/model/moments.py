"""Count, mean and scatter of rows, summed block by block: all that a whitening needs to know of its data."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Moments:
    """The moments of n rows: `mean` (K,) and `scatter` (K, K) = Σ (x − mean)(x − mean)ᵀ, both float64."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets of rows together (Chan, Golub and LeVeque, 1983)."""
        count = self.count + other.count
        if count == 0:
            return self
        apart = other.mean - self.mean
        return Moments(
            count,
            self.mean + apart * (other.count / count),
            self.scatter + other.scatter + np.outer(apart, apart) * (self.count * other.count / count),
        )


def of(rows: np.ndarray) -> Moments:
    """The moments of `rows` (n, K); of none they are zeros."""
    rows = rows.astype(np.float64)
    mean = rows.sum(axis=0) / max(len(rows), 1)
    centred = rows - mean
    return Moments(len(rows), mean, centred.T @ centred)
