"""Whitening: x ← L2(P(x − m)), fitted on descriptors by PCA or learned from images that match.

Both are fitted from sums over the rows (`moments`, `sums`), so that the rows never have to be in one place. A fitted
whitening is a Dense layer (`Whitening.as_dense`): it is applied to descriptors or starts the network's PCA layer.
"""

import io
import json
import zipfile
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from dim import checksum, files, strict_json
from dim.errors import UserError
from dim.model.moments import Moments
from dim.model.vocabulary import POWER

SMALLEST_EIGENVALUE = 1e-3  # of the largest

Kind = Literal["pca", "learned"]


@dataclass(frozen=True, eq=False)
class Whitening:
    """A fitted whitening of K-dimensional descriptors to D ≤ K dimensions.

    `mean` (K,); `projection` (D, K), the P above; `eigenvalues` (K,) of the covariance that was decomposed, largest
    first and not clipped; `power`, by which they divide ("learned" whitens the differences of pairs fully: 0.5).
    `learned_on` says which and how many rows, `embedding` which descriptors, as `Embedding.as_json` does. `uri` and
    `sha256` are those of the file that it was loaded from.
    """

    mean: np.ndarray
    projection: np.ndarray
    eigenvalues: np.ndarray
    power: float
    kind: Kind
    learned_on: dict[str, Any]
    embedding: dict[str, Any] | None = None
    uri: str | None = None
    sha256: str | None = None

    @property
    def explained_variance(self) -> float:
        """The share of the variance that lies in the dimensions that are kept."""
        return float(self.eigenvalues[: len(self.projection)].sum() / self.eigenvalues.sum())

    def as_dense(self) -> tuple[np.ndarray, np.ndarray]:
        """The same map as a Dense layer's weights: kernel Pᵀ (K, D) and bias −Pm (D,), float32."""
        return self.projection.T.astype(np.float32), (-self.projection @ self.mean).astype(np.float32)

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Descriptors (n, K) → whitened ones (n, D), float32, L2-normalised. Raises UserError for another K."""
        kernel, bias = self.as_dense()
        if x.shape[1] != len(kernel):
            raise UserError(
                f"this whitening is for descriptors of {len(kernel)} values, not {x.shape[1]}; fit it again"
            )
        projected: np.ndarray = x.astype(np.float32) @ kernel + bias
        projected /= np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-6)
        return projected

    def save(self, uri: str) -> None:
        """Writes the whitening to `uri` as .npz, without pickle; equal whitenings give equal bytes."""
        stream = io.BytesIO()
        np.savez(
            stream,
            mean=self.mean,
            projection=self.projection,
            eigenvalues=self.eigenvalues,
            power=self.power,
            kind=self.kind,
            learned_on=json.dumps(self.learned_on),
            embedding=json.dumps(self.embedding),
        )
        files.write_bytes(uri, stream.getvalue())


def load(uri: str) -> Whitening:
    """The whitening that `save` wrote to `uri`. Raises UserError where it is missing, broken or something else."""
    try:
        content = files.read_bytes(uri)
    except FileNotFoundError as error:
        raise UserError(f"no whitening file {uri!r}; make it with whiten.py") from error
    except OSError as error:
        raise UserError(f"cannot read the whitening {uri!r}: {files.reason(error)}") from error
    try:
        return replace(_parse(content), uri=uri, sha256=checksum.of(content))
    except Exception as error:  # whatever reading a stranger's file raises, the file is at fault
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{uri!r} is no whitening file ({reason}); make it with whiten.py") from error


def _parse(content: bytes) -> Whitening:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is compressed")  # so that a small file can't unfold to a large one
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        found = Whitening(
            mean=arrays["mean"],
            projection=arrays["projection"],
            eigenvalues=arrays["eigenvalues"],
            power=float(arrays["power"]),
            kind=str(arrays["kind"]),  # type: ignore[arg-type]
            learned_on=strict_json.loads(str(arrays["learned_on"])),
            embedding=strict_json.loads(str(arrays["embedding"])),
        )
    dimension, size = found.projection.shape
    if not (1 <= dimension <= size and found.mean.shape == found.eigenvalues.shape == (size,)):
        raise ValueError("its arrays don't fit each other")
    numbers = np.concatenate([found.mean, found.projection.ravel(), found.eigenvalues, [found.power]])
    if numbers.dtype != np.float64 or not np.isfinite(numbers).all():
        raise ValueError("its arrays are not finite numbers")
    if found.kind not in ("pca", "learned"):
        raise ValueError(f"unknown kind {found.kind!r}")
    if not isinstance(found.learned_on, dict) or not isinstance(found.embedding, dict | None):
        raise ValueError("it doesn't say what it was learned on")
    return found


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
