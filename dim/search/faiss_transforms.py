"""Trains the transforms within an FAISS index (PCA, OPQ, …), and checks that the scores of the index stay cosines.

Rows are L2-normalised, so the inner product of two rows is their cosine. Rotations don't change inner products. FAISS's
own PCA first subtracts the mean, so the inner products after it are not cosines. `train` therefore fits PCA to the
second moments about zero, Σ x xᵀ. If this PCA keeps all dimensions, it is a rotation. If it keeps fewer, no other
projection has a smaller squared error of the inner products of the training rows (Eckart and Young, 1936).
"""

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np

_ROTATIONS = (
    faiss.PCAMatrix, faiss.OPQMatrix, faiss.RandomRotationMatrix, faiss.HadamardRotation,
    faiss.RemapDimensionsTransform, faiss.NormalizationTransform,
)  # fmt: skip


def stages(index: Any) -> Iterator[Any]:
    """Yields `index` and the indexes within it, in the order in which a query passes through them."""
    index = faiss.downcast_index(index)
    yield index
    for name in ("index", "base_index", "refine_index"):  # IndexPreTransform has `index`, IndexRefine the other two
        if (within := getattr(index, name, None)) is not None:
            yield from stages(within)


def objection(index: Any) -> str | None:
    """The reason why the scores of `index` are not cosines, or None if they are."""
    for stage in stages(index):
        if stage.metric_type != faiss.METRIC_INNER_PRODUCT:
            return "it compares by L2 distance; with HNSW, use SQ8 instead of PQ"
        for transform in _transforms(stage):
            if not _rotates(transform):
                return f"its {type(transform).__name__} changes the cosines that photos are ranked by; use PCA or OPQ"
            if getattr(transform, "eigen_power", 0):
                return "it whitens, which changes the cosines that photos are ranked by; use PCA and --whitening FILE"
            if getattr(transform, "have_bias", False) and faiss.vector_to_array(transform.b).any():
                return "its PCA subtracts the mean, so that its scores are not cosines"
    return None


def train(index: Any, sample: np.ndarray) -> None:
    """Trains the transforms of `index` on `sample`, unit float32 vectors (n, D): each on the previous one's output."""
    for stage in stages(index):
        passed = sample
        for transform in _transforms(stage):
            if isinstance(transform, faiss.PCAMatrix):
                _fit(transform, passed)
            elif not transform.is_trained:
                transform.train(passed)
            passed = transform.apply(passed)


def apply(index: Any, vectors: np.ndarray) -> np.ndarray:
    """Applies the transforms of `index` to `vectors`, float32 (n, D)."""
    for transform in _transforms(index):
        vectors = transform.apply(vectors)
    return vectors


def _transforms(index: Any) -> list[Any]:
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    return [faiss.downcast_VectorTransform(index.chain.at(number)) for number in range(index.chain.size())]


def _rotates(transform: Any) -> bool:
    """Whether `transform` is a rotation, or a rotation and then a projection onto fewer dimensions."""
    if type(transform) is not faiss.LinearTransform:  # FAISS reads a saved OPQMatrix as a LinearTransform
        return isinstance(transform, _ROTATIONS)
    matrix = faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in)
    products = matrix @ matrix.T if transform.d_out <= transform.d_in else matrix.T @ matrix
    return bool(np.allclose(products, np.eye(len(products)), atol=1e-4))


def _fit(pca: Any, sample: np.ndarray) -> None:
    values, vectors = np.linalg.eigh(np.asarray(sample.T @ sample, np.float64))
    faiss.copy_array_to_vector(np.zeros(pca.d_in, np.float32), pca.mean)
    faiss.copy_array_to_vector(values[::-1].astype(np.float32), pca.eigenvalues)
    faiss.copy_array_to_vector(vectors.T[::-1].astype(np.float32).ravel(), pca.PCAMat)
    pca.prepare_Ab()
    pca.is_trained = True
