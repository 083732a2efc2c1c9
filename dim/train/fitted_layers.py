"""Fits the layers that whiten to the photos of split train: R-MAC's regions, the PCA layer, and what follows training.

The whitening after training replaces the trained PCA layer: both are linear maps of the pooled, L2-normalised vector.
It is fitted to these vectors as the trained network computes them (Radenović et al., 1711.02512, section 3.3).
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dim.model.whitening import Whitening
from dim.search.exact import Part
from dim.whiten.distributed_sums import in_this_process, label_codes, moments_of_pairs
from dim.whiten.fit import Moments, fit_learned, fit_pca, merged, moments_of

# The shrinkages of a learned whitening that split val chooses from. None is that of the formula, which estimates the
# covariance well, but often whitens more than new objects bear.
SHRINKAGES = (None, 0.5, 0.7, 0.9)

Dense = tuple[np.ndarray, np.ndarray]  # a kernel (K, D) and a bias (D,), float32


def moments(parts: Sequence[Part], dimension: int) -> Moments:
    """The moments of the vectors of `parts`, (N, `dimension`)."""
    return merged((moments_of(part.load()) for part in parts), dimension)


def pca(of: Moments, width: int, power: float) -> Whitening:
    """The PCA of rows with the moments `of`, to `width` values; if there are too few rows, to as many as possible."""
    return fit_pca(of, min(width, of.count - 1), {}, power=power)


def learned(parts: Sequence[Part], labels: np.ndarray, width: int, share: int) -> list[Whitening]:
    """The learned whitenings of the vectors of `parts` (N, K), one for each of `SHRINKAGES`; see `fit_learned`.

    Args:
        labels: The label of each vector, str or None, (N,). At least one label must have two vectors.
        width: The number of values to keep, if there are enough vectors.
        share: Bytes of memory for the sums of labels.
    """
    codes = label_codes(pa.array(labels, pa.string()))
    queries, differences = moments_of_pairs(parts, codes, share, in_this_process)
    width = min(width, queries.count - 1)
    return [fit_learned(queries, differences, width, {}, shrinkage=shrinkage) for shrinkage in SHRINKAGES]


def as_dense(whitening: Whitening, width: int) -> Dense:
    """The kernel and the bias of a layer with `width` outputs. Those that the whitening lacks are zero."""
    kernel, bias = whitening.as_dense()
    missing = width - len(bias)
    return np.pad(kernel, ((0, 0), (0, missing))), np.pad(bias, (0, missing))
