"""Pools non-negative activation maps X (N, H, W, K) into one vector per image. The vectors are not normalised yet.

Each pooling is a function and a Keras layer that calls it. `POOLINGS` has the layers, all named "pooling". They
compute in float32 at any precision of the backbone, and accept maps whose height and width are unknown until run time.
`region_maxima` defines the regions of R-MAC. A whitening of regions is fitted to `region_vectors`.

The formulas write X_k(p) for the activation of channel k at position p, and f_k for entry k of the result.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from dim.model.backend import keras, ops
from dim.model.layers import l2_normalise, positions

GEM_EPSILON = 1e-6  # GeM replaces smaller activations by this value, so that the logarithm is finite
MOST_EXTRA = 6  # the most extra regions along the longer side of a map, as in the code of R-MAC's authors
FLOAT32 = {"name": "pooling", "dtype": "float32"}


def mac(maps: Any) -> Any:
    """Maximum activations: f_k = max_p X_k(p) (Tolias et al., 1511.05879)."""
    return ops.max(maps, axis=(1, 2))


def spoc(maps: Any) -> Any:
    """Sum pooling without a prior: f_k = Σ_p X_k(p) (Babenko and Lempitsky, 1510.07493)."""
    return ops.sum(maps, axis=(1, 2))


def spoc_prior(maps: Any) -> Any:
    """Sum pooling with the centre prior: f_k = Σ_p exp(−d²/2σ²) X_k(p) (Babenko and Lempitsky, 1510.07493, equation 3).

    d is the distance from p to the centre. σ = min(H, W)/6 is a third of the centre's distance to the nearest border.
    """
    down, across = positions(maps, 1), positions(maps, 2)
    bottom, right = (ops.max(line, axis=1, keepdims=True) for line in (down, across))
    sigma = (ops.minimum(bottom, right) + 1) / 6

    def prior(line: Any, last: Any) -> Any:
        return ops.exp(-ops.square((line - last / 2) / sigma) / 2)

    return ops.einsum("nhwk,nh,nw->nk", maps, prior(down, bottom), prior(across, right))


def gem(maps: Any, p: Any = 3.0) -> Any:
    """Generalised mean: f_k = (mean_p max(X_k(p), 1e-6)^p)^(1/p) (Radenović et al., 1711.02512, equation 3)."""
    maps = ops.maximum(maps, GEM_EPSILON)
    # Dividing by the largest value keeps the powers from overflowing. The result does not depend on this scale.
    largest = ops.stop_gradient(ops.max(maps, axis=(1, 2), keepdims=True))
    mean = ops.mean(ops.exp(p * ops.log(maps / largest)), axis=(1, 2))  # several times as fast as with `ops.power`
    return largest[:, 0, 0] * ops.power(mean, 1 / p)


def crow(maps: Any) -> Any:
    """Cross-dimensional weighting: f_k = C_k Σ_p S(p) X_k(p) (Kalantidis et al., 1512.04065, section 3).

    The spatial weights are S = √(s / ‖s‖₂) with s = Σ_k X_k. The channel weights are C_k = log(Σ_j Q_j / Q_k), where
    Q_k is the share of positions at which X_k is not zero; C_k = 0 if Q_k = 0.
    """
    total = ops.sum(maps, axis=3)
    active = total > 0
    # The gradient of a root at zero is infinite. So zeros are replaced by 1 before the root, and their weights are 0.
    squares = ops.sum(ops.square(total), axis=(1, 2), keepdims=True)
    share = ops.where(active, total, 1) * ops.rsqrt(ops.where(squares > 0, squares, 1))
    spatial = ops.where(active, ops.sqrt(share), 0)

    nonzero = ops.mean(ops.cast(maps > 0, maps.dtype), axis=(1, 2))
    ratio = ops.sum(nonzero, axis=1, keepdims=True) / ops.where(nonzero > 0, nonzero, 1)
    channel = ops.where(nonzero > 0, ops.log(ops.where(nonzero > 0, ratio, 1)), 0)
    return channel * ops.einsum("nhw,nhwk->nk", spatial, maps)


def rmac(maps: Any, levels: int = 3, kernel: Any = None, bias: Any = None) -> Any:
    """R-MAC: f = Σ over regions of L2(L2(maxima) · kernel + bias) (Tolias et al., 1511.05879, section 3.2).

    `kernel` (K, D) and `bias` (D,) are a whitening of regions, as `Whitening.as_dense` returns it. If they are None,
    the regions are only normalised: f = Σ over regions of L2(maxima), and D = K.
    """
    vectors = region_vectors(maps, levels)
    if kernel is not None:
        vectors = l2_normalise(ops.matmul(vectors, kernel) + bias)
    return ops.sum(vectors, axis=1)


def region_vectors(maps: Any, levels: int = 3) -> Any:
    """Returns L2(maxima) of each region, (N, regions, K), which a whitening of regions is fitted and applied to."""
    return l2_normalise(region_maxima(maps, levels))


def region_maxima(maps: Any, levels: int = 3) -> Any:
    """Returns the maximum of each channel in each region, level by level: maps (N, H, W, K) → (N, regions, K).

    Level l has square regions of side ⌊2w / (l + 1)⌋, where w is the shorter side of the map. Along the shorter side
    there are l regions, along the longer side l + `extra_regions`.
    """
    _, height, width, channels = ops.shape(maps)
    # If the map's size is known, NumPy computes the regions now. Else Keras's operations compute them at run time.
    xp: Any = np if isinstance(height, int) and isinstance(width, int) else ops
    short = xp.minimum(height, width)
    found = []
    for level in range(1, levels + 1):
        # If the map is one pixel wide, regions above level 1 have side 0. They get side 1 here and are dropped below.
        exists = xp.minimum(2 * short // (level + 1), 1)
        side = xp.maximum(2 * short // (level + 1), 1)
        down, across = (
            region_starts(length, short, side, level, xp)[:, None] + xp.arange(side) for length in (height, width)
        )
        # The maximum over a region is computed in two steps: along the width, then along the height of the results. So
        # no whole region is copied, and the working memory is only about twice the size of the maps.
        strips = ops.max(ops.take(maps, across, axis=2), axis=3)
        maxima = ops.max(ops.take(strips, down, axis=1), axis=2)
        count = ops.shape(down)[0] * ops.shape(across)[0]
        found.append(ops.reshape(maxima, (-1, count, channels))[:, : count * exists])
    return ops.concatenate(found, axis=1)


def region_starts(length: Any, short: Any, side: Any, level: int, xp: Any) -> Any:
    """Returns the first position of each region of a level along a map side of `length`. `xp` is NumPy or `keras.ops`.

    Integer arithmetic gives the same regions on every machine. (The code of R-MAC's authors computes in floats. Its
    rounding gives other regions if the sides have the ratio 9:5 or 11:3, and for a few sizes above 60.)
    """
    count = level + extra_regions(length, short, xp)
    return xp.arange(count) * (length - side) // xp.maximum(count - 1, 1)


def extra_regions(length: Any, short: Any, xp: Any) -> Any:
    """Returns the number of extra regions along a map side of `length`. The shorter side, `short`, has none.

    The number, at most MOST_EXTRA, makes the overlap of neighbouring regions of level 1 as close to 40 % as possible.
    Both lengths are integers, or both are tensors (..., 1).
    """
    # s + 1 extra regions give an overlap closer to 40 % than s if (length − short) / short > 6/5 · s(s + 1) / (2s + 1).
    s = np.arange(MOST_EXTRA)
    return xp.sum((length - short) * (5 * (2 * s + 1)) > short * (6 * s * (s + 1)), axis=-1)


_PLAIN: dict[str, Callable[[Any], Any]] = {"mac": mac, "spoc": spoc, "spoc-prior": spoc_prior, "crow": crow}


@keras.saving.register_keras_serializable(package="dim")
class PlainPooling(keras.layers.Layer):  # type: ignore[misc]
    """A pooling without weights. The function that `method` names has the formula and its source.

    Args:
        method: "mac", "spoc", "spoc-prior" or "crow".

    Input shape: (N, H, W, K), non-negative.
    Output shape: (N, K).
    """

    def __init__(self, method: str, **options: Any) -> None:
        super().__init__(**FLOAT32 | options)
        self.method = method

    def call(self, maps: Any) -> Any:
        """Pools each image's maps."""
        return _PLAIN[self.method](maps)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for `.keras` files."""
        return {**super().get_config(), "method": self.method}


@keras.saving.register_keras_serializable(package="dim")
class GeM(keras.layers.Layer):  # type: ignore[misc]
    """Generalised-mean pooling (see `gem`) with a learnable exponent, which all channels share.

    Args:
        p: The initial value of the weight `p`; 1 gives the mean, ∞ the maximum.

    Input shape: (N, H, W, K), non-negative.
    Output shape: (N, K).
    """

    def __init__(self, p: float = 3.0, **options: Any) -> None:
        super().__init__(**FLOAT32 | options)
        self.start = p

    def build(self, _shape: tuple[int | None, ...]) -> None:
        """Creates the scalar weight `p`."""
        self.p = self.add_weight(name="p", shape=(), initializer=keras.initializers.Constant(self.start))

    def call(self, maps: Any) -> Any:
        """Pools each image's maps."""
        return gem(maps, self.p)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for `.keras` files."""
        return {**super().get_config(), "p": self.start}


@keras.saving.register_keras_serializable(package="dim")
class RMAC(keras.layers.Layer):  # type: ignore[misc]
    """R-MAC pooling (see `rmac`): sums the L2-normalised maxima of square regions, which it can whiten first.

    The weights `kernel` and `bias` of the whitening start as the identity. `set_weights(whitening.as_dense())` replaces
    them by a fitted whitening, which must have been fitted to `region_vectors`.

    Args:
        levels: The number of scales; see `region_maxima`.
        dimension: D, the number of outputs of the whitening. If None, regions are only normalised.

    Input shape: (N, H, W, K), non-negative.
    Output shape: (N, `dimension`), or (N, K) without a whitening.
    """

    def __init__(self, levels: int = 3, dimension: int | None = None, **options: Any) -> None:
        super().__init__(**FLOAT32 | options)
        self.levels = levels
        self.dimension = dimension
        self.kernel = self.bias = None

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Creates the weights of the whitening, if there is one."""
        if self.dimension is not None:
            self.kernel = self.add_weight(name="kernel", shape=(shape[-1], self.dimension), initializer="identity")
            self.bias = self.add_weight(name="bias", shape=(self.dimension,), initializer="zeros")

    def call(self, maps: Any) -> Any:
        """Pools each image's maps."""
        return rmac(maps, self.levels, self.kernel, self.bias)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for `.keras` files."""
        return {**super().get_config(), "levels": self.levels, "dimension": self.dimension}


POOLINGS: dict[str, Callable[..., keras.layers.Layer]] = {
    **{method: partial(PlainPooling, method) for method in _PLAIN},
    "gem": GeM,
    "rmac": RMAC,
}
