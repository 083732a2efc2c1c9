"""Defines a fitted whitening, x ← L2(P(x − m)), and the .npz file that stores it.

`dim.whiten.fit` fits whitenings. `Whitening.apply` whitens stored descriptors. `Whitening.as_dense` gives the initial
weights of a network's PCA layer.
"""

import io
import json
import zipfile
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from dim.errors import UserError
from dim.io import files, seal, strict_json


@dataclass(frozen=True, eq=False)
class Whitening:
    """A fitted whitening of K-dimensional descriptors to D ≤ K dimensions.

    Args:
        mean: m, float64 (K,).
        projection: P, float64 (D, K).
        eigenvalues: The eigenvalues of the covariance that was decomposed, largest first, not clipped; float64 (K,).
        power: PCA divides each direction by its eigenvalue to this power. 0 only rotates, 0.5 whitens fully. A learned
            whitening has the power 0.5, because it fully whitens the differences of matching pairs.
        kind: "pca" or "learned".
        learned_on: The training data: the manifest, the split and the number of rows.
        embedding: The embedding of the descriptors to which the whitening applies, as `Embedding.as_json` returns it.
        uri: The file from which the whitening was loaded.
        sha256: The hash of that file.
    """

    mean: np.ndarray
    projection: np.ndarray
    eigenvalues: np.ndarray
    power: float
    kind: Literal["pca", "learned"]
    learned_on: dict[str, Any]
    embedding: dict[str, Any] | None = None
    uri: str | None = None
    sha256: str | None = None

    @property
    def explained_variance(self) -> float:
        """The variance of the D dimensions that are kept, as a share of the variance of all K: from 0 to 1."""
        return float(self.eigenvalues[: len(self.projection)].sum() / self.eigenvalues.sum())

    def as_dense(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the weights of a Dense layer that computes P(x − m): kernel Pᵀ (K, D) and bias −Pm (D,), float32."""
        return self.projection.T.astype(np.float32), (-self.projection @ self.mean).astype(np.float32)

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Whitens descriptors (n, K) → (n, D), float32, L2-normalised. Raises UserError unless `x` has K columns."""
        kernel, bias = self.as_dense()
        if x.shape[1] != len(kernel):
            raise UserError(
                f"this whitening is for descriptors of {len(kernel)} values, not {x.shape[1]}; fit it again"
            )
        projected: np.ndarray = x.astype(np.float32) @ kernel + bias
        projected /= np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-6)
        return projected

    def save(self, uri: str) -> None:
        """Writes the whitening to `uri`, an .npz without pickle. Equal whitenings give equal bytes."""
        names = ("mean", "projection", "eigenvalues", "power", "kind")
        arrays: dict[str, Any] = {name: getattr(self, name) for name in names}
        arrays |= {name: json.dumps(getattr(self, name)) for name in ("learned_on", "embedding")}
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        files.write_bytes(uri, stream.getvalue())


def load(uri: str) -> Whitening:
    """Reads a file that `Whitening.save` wrote. Raises UserError if it is missing or is not such a file."""
    try:
        content = files.read_bytes(uri)
    except FileNotFoundError as error:
        raise UserError(f"no whitening file {uri!r}; make it with whiten.py") from error
    except OSError as error:
        raise UserError(f"cannot read the whitening {uri!r}: {files.reason(error)}") from error
    try:
        return replace(_parse(content), uri=uri, sha256=seal.sha256(content))
    except Exception as error:  # reading a damaged or hostile file can raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{uri!r} is not a whitening file ({reason}); make it with whiten.py") from error


def _parse(content: bytes) -> Whitening:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is compressed")  # a small compressed file could expand to fill the memory
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        values: dict[str, Any] = {name: arrays[name] for name in ("mean", "projection", "eigenvalues")}
        values |= {name: strict_json.loads(str(arrays[name])) for name in ("learned_on", "embedding")}
        found = Whitening(power=float(arrays["power"]), kind=str(arrays["kind"]), **values)  # type: ignore[arg-type]
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
