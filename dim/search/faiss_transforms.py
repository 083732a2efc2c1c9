"""What an FAISS index does to vectors before it compares them, kept such that its scores are cosines.

Rows are L2-normalised, so that inner products are cosines as long as vectors are only rotated. FAISS's own PCA first
subtracts the mean, after which an inner product is none. Here PCA is that of the second moments about zero,
Σ x xᵀ: with all dimensions kept the inner products stay as they are, and of all projections to fewer dimensions none
has a smaller squared error of the products between the rows trained on (Eckart and Young).
"""

import logging
import math
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np

log = logging.getLogger(__name__)

_ROTATIONS = (
    faiss.PCAMatrix,
    faiss.OPQMatrix,
    faiss.RandomRotationMatrix,
    faiss.HadamardRotation,
    faiss.RemapDimensionsTransform,
    faiss.NormalizationTransform,
)


def stages(index: Any) -> Iterator[Any]:
    """`index` and the indexes within it that compare vectors, in the order in which a query passes them."""
    index = faiss.downcast_index(index)
    yield index
    for name in ("index", "base_index", "refine_index"):  # behind a transform; before and of a refinement
        if (within := getattr(index, name, None)) is not None:
            yield from stages(within)


def _transforms(index: Any) -> list[Any]:
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    return [faiss.downcast_VectorTransform(index.chain.at(number)) for number in range(index.chain.size())]


def objection(index: Any) -> str | None:
    """Why the scores of `index` are not cosines, None where they are."""
    for stage in stages(index):
        if stage.metric_type != faiss.METRIC_INNER_PRODUCT:
            return "it compares by L2 distance; with HNSW take SQ8 in place of PQ"
        for transform in _transforms(stage):
            if not _rotates(transform):
                return f"its {type(transform).__name__} changes the cosines that photos are ranked by; take PCA or OPQ"
            if getattr(transform, "eigen_power", 0):
                return "it whitens, which changes the cosines that photos are ranked by; use PCA and --whitening FILE"
            if getattr(transform, "have_bias", False) and faiss.vector_to_array(transform.b).any():
                return "its PCA subtracts the mean, so that its scores are not cosines"
    return None


def _rotates(transform: Any) -> bool:
    if type(transform) is not faiss.LinearTransform:  # as which FAISS reads an OPQMatrix from its file
        return isinstance(transform, _ROTATIONS)
    matrix = faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in)
    products = matrix @ matrix.T if transform.d_out <= transform.d_in else matrix.T @ matrix
    return bool(np.allclose(products, np.eye(len(products)), atol=1e-4))


def train(index: Any, sample: np.ndarray) -> None:
    """Trains `index` on `sample`, L2-normalised float32 (n, D), and says so where these are few."""
    wanted = max(map(_wanted, stages(index)))
    if len(sample) < wanted:
        log.warning("%d rows are few to train this index; FAISS advises %d or more", len(sample), wanted)
    for stage in stages(index):
        passed = sample
        for transform in _transforms(stage):
            if isinstance(transform, faiss.PCAMatrix):
                _fit(transform, passed)
            elif not transform.is_trained:
                transform.train(passed)
            passed = transform.apply(passed)
    index.train(sample)


def _wanted(index: Any) -> int:
    """How many rows FAISS wants to train `index` on, by the centroids of its lists and codes."""
    found = 0
    for clustered, centroids in ((index, "nlist"), (getattr(index, "pq", None), "ksub")):
        if (clustering := getattr(clustered, "cp", None)) is not None:
            found = max(found, clustering.min_points_per_centroid * getattr(clustered, centroids))
    return found


def _fit(pca: Any, sample: np.ndarray) -> None:
    values, vectors = np.linalg.eigh(np.asarray(sample.T @ sample, np.float64))
    faiss.copy_array_to_vector(np.zeros(pca.d_in, np.float32), pca.mean)
    faiss.copy_array_to_vector(values[::-1].astype(np.float32), pca.eigenvalues)
    faiss.copy_array_to_vector(vectors.T[::-1].astype(np.float32).ravel(), pca.PCAMat)
    pca.prepare_Ab()
    pca.is_trained = True


def deepen(index: Any, count: int) -> None:
    """Makes the graphs within `index` follow at least as many candidates as give `count` rows.

    FAISS's HNSW else stops when it has seen efSearch, 16 unless another is set, and gives what it has until then.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        deepen(index.index, count)
    elif isinstance(index, faiss.IndexRefine):
        deepen(index.base_index, math.ceil(count * index.k_factor))
    elif isinstance(index, faiss.IndexIVF):
        deepen(index.quantizer, index.nprobe)
    elif isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = max(index.hnsw.efSearch, count)
