"""Fits a PCA-whitening, or a whitening learned from matching images.

A row is the vector of a photo or of a region. The fits need only the count, mean and scatter of the rows (`Moments`).
These moments are computed for one block of rows at a time, and then merged. So the rows never have to be in one place.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dim.errors import UserError
from dim.model.whitening import Whitening
from dim.whiten.config import POWER

SMALLEST_EIGENVALUE = 1e-3  # as a fraction of the largest eigenvalue; `fit_pca` replaces smaller ones by this bound


@dataclass(frozen=True, eq=False)
class Moments:
    """The number of rows x, their mean (K,), and their scatter Σ (x − mean)(x − mean)ᵀ (K, K). Arrays are float64."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    def merge(self, other: "Moments") -> "Moments":
        """Returns the moments of both sets of rows together (Chan, Golub and LeVeque, 1983)."""
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
    """Returns the moments of `rows` (n, K). If there are no rows, the count, mean and scatter are zero."""
    rows = rows.astype(np.float64)
    mean = rows.sum(axis=0) / max(len(rows), 1)
    centred = rows - mean
    return Moments(len(rows), mean, centred.T @ centred)


def merged(blocks: Iterable[Moments], dimension: int) -> Moments:
    """Returns the moments of the rows (K,) of all `blocks` together, with K = `dimension`; those of no rows if none."""
    return functools.reduce(Moments.merge, blocks, moments_of(np.zeros((0, dimension))))


def fit_pca(
    moments: Moments,
    dimension: int | None,
    learned_on: dict[str, Any],
    embedding: dict[str, Any] | None = None,
    *,
    power: float = POWER,
) -> Whitening:
    """Fits a PCA-whitening P = diag(λ^−power)·Vᵀ. V are the eigenvectors and λ the eigenvalues of the covariance.

    Each λ below 1e-3 of the largest λ is replaced by this bound: directions with little variance must not dominate.

    Args:
        moments: The moments of n rows (K,).
        dimension: D, the number of directions to keep; None keeps as many as possible, min(K, n − 1).
        learned_on: A description of the training data. The whitening stores it, together with n.
        embedding: The embedding of the rows, as `Embedding.as_json` returns it.
        power: 0 only rotates, 0.5 whitens fully.

    Raises:
        UserError: `dimension` is not from 1 to min(K, n − 1), or the rows are all equal or not finite.
    """
    dimension = _checked_dimension(dimension, moments)
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
    """Fits a learned whitening P = VᵀL⁻¹ (Radenović et al., 1711.02512, section 3.3, "Lw").

    S is the covariance of the differences of matching pairs, and LLᵀ = S. The queries x are mapped to L⁻¹x, and V are
    the eigenvectors of the covariance of all L⁻¹x. (The method goes back to Mikolajczyk and Matas, ICCV 2007.) It needs
    many more pairs than dimensions. With few pairs, some directions vary little only by chance, and these dominate.
    So S is first replaced by (1 − ρ)·S + ρ·(tr S/K)·I. Raises UserError as `fit_pca` does.

    Args:
        queries: The moments of the rows that have a matching row.
        differences: The moments of the differences of matching pairs. The mean of the differences is zero.
        dimension, learned_on, embedding: See `fit_pca`.
        shrinkage: ρ, from 0 (as published) to 1. None chooses ρ by the formula `_oas`: the more pairs, the smaller ρ.
    """
    dimension = _checked_dimension(dimension, queries)
    covariance = differences.scatter / differences.count
    variance = _mean_variance(covariance, "the descriptors of each label")
    rho = _oas(covariance, differences.count) if shrinkage is None else shrinkage
    whiten = np.linalg.inv(_cholesky((1 - rho) * covariance + rho * variance * np.eye(len(covariance))))
    eigenvalues, vectors = _decompose(whiten @ (queries.scatter / (queries.count - 1)) @ whiten.T)
    projection = (vectors @ whiten)[:dimension]
    about = learned_on | {"rows": queries.count, "shrinkage": rho}
    return Whitening(queries.mean, projection, eigenvalues, 0.5, "learned", about, embedding)


def _oas(covariance: np.ndarray, count: int) -> float:
    """Returns the shrinkage of a covariance of `count` rows by scikit-learn's OAS formula (Chen et al., 0907.4698)."""
    squared, of_squares = np.trace(covariance) ** 2, np.sum(covariance**2)
    excess = (count + 1) * (of_squares - squared / len(covariance))
    return float(min(1.0, (of_squares + squared) / excess)) if excess > 0 else 1.0


def _checked_dimension(dimension: int | None, moments: Moments) -> int:
    """Returns `dimension`, or the largest possible value if it is None. Raises UserError if it is out of range."""
    most = min(len(moments.mean), moments.count - 1)
    wanted = most if dimension is None else dimension
    if not 1 <= wanted <= most:
        raise UserError(
            f"{moments.count} descriptors of {len(moments.mean)} values allow a whitening to 1 to {most} dimensions, "
            f"min(values, descriptors − 1), not to {wanted}"
        )
    return wanted


def _mean_variance(covariance: np.ndarray, what: str) -> float:
    """Returns the mean of the diagonal. Raises UserError about `what` unless this mean is positive and finite."""
    variance = float(np.trace(covariance)) / len(covariance)
    if not 0 < variance < np.inf:
        raise UserError(f"{what} are all equal or not finite (mean variance {variance}); extract them again")
    return variance


def _decompose(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns eigenvalues, largest first, and eigenvectors as rows, whose entries of largest magnitude are positive."""
    _mean_variance(covariance, "the descriptors")
    eigenvalues, columns = np.linalg.eigh(covariance)
    vectors = columns.T[::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
    return eigenvalues[::-1], vectors * np.sign(largest)


def _cholesky(covariance: np.ndarray) -> np.ndarray:
    """Returns the Cholesky factor. If the matrix is singular (few pairs, no shrinkage), a small diagonal is added."""
    diagonal = 0.0
    while True:
        try:
            return np.linalg.cholesky(covariance + diagonal * np.eye(len(covariance)))
        except np.linalg.LinAlgError:
            diagonal = max(10 * diagonal, 1e-10 * float(np.trace(covariance)) / len(covariance))
