"""Count, mean and scatter of rows, summed block by block: all that a whitening needs to know of its data.

Fitting a whitening: PCA, or learned from images that match.

Both are fitted from sums over the rows (`Moments`), so that the rows never have to be in one place.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dim.errors import UserError
from dim.model.whitening import Whitening
from dim.whiten.config import POWER


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


def moments_of(rows: np.ndarray) -> Moments:
    """The moments of `rows` (n, K); of none they are zeros."""
    rows = rows.astype(np.float64)
    mean = rows.sum(axis=0) / max(len(rows), 1)
    centred = rows - mean
    return Moments(len(rows), mean, centred.T @ centred)


SMALLEST_EIGENVALUE = 1e-3  # of the largest


def fit_pca(
    moments: Moments,
    dimension: int | None,
    learned_on: dict[str, Any],
    embedding: dict[str, Any] | None = None,
    *,
    power: float = POWER,
) -> Whitening:
    """PCA-whitening: P = diag(λ^−power)·Vᵀ, the first `dimension` rows (None: all), of the covariance's V and λ.

    λ is clipped at 1e-3 of the largest: directions in which the data hardly vary must not be blown up.
    Raises UserError where `dimension` is more than min(K, n − 1), or the rows are all equal or not finite.
    """
    dimension = _possible(dimension, moments)
    about = learned_on | {"rows": moments.count}
    eigenvalues, vectors = _decompose(moments.scatter / (moments.count - 1))
    scale = np.maximum(eigenvalues, SMALLEST_EIGENVALUE * eigenvalues[0]) ** -power
    projection = (scale[:, None] * vectors)[:dimension]
    return Whitening(moments.mean, projection, eigenvalues, power, "pca", about, embedding)


def fit_learned(
    queries: Moments,
    differences: Moments,
    dimension: int | None,
    learned_on: dict[str, Any],
    embedding: dict[str, Any] | None = None,
    *,
    shrinkage: float | None = None,
) -> Whitening:
    """Learned whitening, Lw (Radenović et al., 1711.02512, section 3.3; after Mikolajczyk and Matas, ICCV 2007).

    S is the covariance of the `differences` of matching pairs, LLᵀ = S, and V the eigenvectors of the covariance of the
    queries once they are mapped by L⁻¹. P = VᵀL⁻¹, its first `dimension` rows (None: all).

    As published it needs many more pairs than dimensions: with few, the directions in which these happen not to differ
    drown all others. So S is drawn towards a multiple of the identity, S ← (1 − ρ)·S + ρ·(tr S/K)·I. ρ is `shrinkage`:
    0 as published, None by `_oas`, which goes to 0 as pairs are added. Raises UserError as `fit_pca` does.
    """
    dimension = _possible(dimension, queries)
    covariance = differences.scatter / differences.count
    variance = _varying(covariance, "the descriptors of each label")
    rho = _oas(covariance, differences.count) if shrinkage is None else shrinkage
    whiten = np.linalg.inv(_cholesky((1 - rho) * covariance + rho * variance * np.eye(len(covariance))))
    eigenvalues, vectors = _decompose(whiten @ (queries.scatter / (queries.count - 1)) @ whiten.T)
    projection = (vectors @ whiten)[:dimension]
    about = learned_on | {"rows": queries.count, "shrinkage": rho}
    return Whitening(queries.mean, projection, eigenvalues, 0.5, "learned", about, embedding)


def _oas(covariance: np.ndarray, count: int) -> float:
    """The shrinkage that suits a covariance of `count` rows: OAS (Chen et al., 0907.4698), as in scikit-learn."""
    squared, of_squares = np.trace(covariance) ** 2, np.sum(covariance**2)
    excess = (count + 1) * (of_squares - squared / len(covariance))
    return float(min(1.0, (of_squares + squared) / excess)) if excess > 0 else 1.0


def _possible(dimension: int | None, moments: Moments) -> int:
    """`dimension` if a whitening can have it, the most it can have for None; else a UserError."""
    most = min(len(moments.mean), moments.count - 1)
    wanted = most if dimension is None else dimension
    if not 1 <= wanted <= most:
        raise UserError(
            f"{moments.count} descriptors of {len(moments.mean)} values allow a whitening to 1 to {most} dimensions, "
            f"min(values, descriptors − 1), not to {wanted}"
        )
    return wanted


def _varying(covariance: np.ndarray, what: str) -> float:
    """The mean variance, positive and finite; else a UserError."""
    variance = float(np.trace(covariance)) / len(covariance)
    if not 0 < variance < np.inf:
        raise UserError(f"{what} are all equal or not finite (mean variance {variance}); extract them again")
    return variance


def _decompose(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, largest first, and eigenvectors as rows, of signs such that their largest entries are positive."""
    _varying(covariance, "the descriptors")
    eigenvalues, columns = np.linalg.eigh(covariance)
    vectors = columns.T[::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
    return eigenvalues[::-1], vectors * np.sign(largest)


def _cholesky(covariance: np.ndarray) -> np.ndarray:
    """The Cholesky factor, a growing diagonal added until there is one (without shrinkage, where pairs are few)."""
    diagonal = 0.0
    while True:
        try:
            return np.linalg.cholesky(covariance + diagonal * np.eye(len(covariance)))
        except np.linalg.LinAlgError:
            diagonal = max(10 * diagonal, 1e-10 * float(np.trace(covariance)) / len(covariance))
