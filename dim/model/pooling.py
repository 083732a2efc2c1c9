"""R-MAC (Tolias et al., 1511.05879, section 3.2): the sum of the maxima of square regions at several scales.

Level l has regions of side ⌊2w / (l + 1)⌋, with w the map's shorter side: l of them along that side, and along the
longer side as many more as bring the overlap of neighbours on level 1 closest to 40 %.

Pooling: activation maps X (N, H, W, K), non-negative, → one vector an image (N, K), not yet normalised.

Each pooling is a plain function and, under its name in `POOLINGS`, a layer called "pooling" that computes in float32
whatever the backbone's precision. H and W may be unknown until run time.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from dim.model.backend import keras, ops
from dim.model.layers import l2_normalise, positions

STEPS = np.arange(6)


def more(length: Any, short: Any, xp: Any) -> Any:
    """How many regions a level has along a side of `length` beyond those it has along the shorter one, up to
    len(STEPS): of numbers, or of tensors (…, 1) one for each.
    """
    # s + 1 more regions overlap closer to 40 % than s do if the excess / short > 6/5 s(s + 1) / (2s + 1).
    return xp.sum((length - short) * (5 * (2 * STEPS + 1)) > short * (6 * STEPS * (STEPS + 1)), axis=-1)


def _starts(length: Any, short: Any, side: Any, level: int, xp: Any) -> Any:
    """Where the regions of a level start along a map's side of `length`, in whole numbers throughout, so that the same
    map has the same regions everywhere. (The original's float rounding differs at 9:5, 11:3 and a few sizes above 60.)
    """
    count = level + more(length, short, xp)
    return xp.arange(count) * (length - side) // xp.maximum(count - 1, 1)


def regions(height: int, width: int, levels: int = 3) -> Iterator[tuple[int, int, int]]:
    """The regions of a map (top, left, side), in the order of `region_maxima`."""
    short = min(height, width)
    for level in range(1, levels + 1):
        if side := 2 * short // (level + 1):
            down, across = (_starts(length, short, side, level, np).tolist() for length in (height, width))
            yield from ((top, left, side) for top in down for left in across)


def region_maxima(maps: Any, levels: int = 3) -> Any:
    """The maximum of each channel in each region: maps (N, H, W, K) → (N, R, K), level by level.

    A maximum over a rectangle is the maximum down of the maxima across, so that no region is ever cut out: beside the
    maps there is at any time about twice their size.
    """
    _, height, width, channels = ops.shape(maps)
    # Sizes that are known are worked out here, others in the graph.
    xp: Any = np if isinstance(height, int) and isinstance(width, int) else ops
    short = xp.minimum(height, width)
    found = []
    for level in range(1, levels + 1):
        # A region of side 0 (on a map one pixel wide, above level 1) is none; it is left out once it has a shape.
        exists = xp.minimum(2 * short // (level + 1), 1)
        side = xp.maximum(2 * short // (level + 1), 1)
        down, across = (
            _starts(length, short, side, level, xp)[:, None] + xp.arange(side) for length in (height, width)
        )
        strips = ops.max(ops.take(maps, across, axis=2), axis=3)
        maxima = ops.max(ops.take(strips, down, axis=1), axis=2)
        count = ops.shape(down)[0] * ops.shape(across)[0]
        found.append(ops.reshape(maxima, (-1, count, channels))[:, : count * exists])
    return ops.concatenate(found, axis=1)


def rmac(maps: Any, levels: int = 3, kernel: Any = None, bias: Any = None) -> Any:
    """R-MAC: Σ over regions of L2(L2(maxima) · kernel + bias), maps (N, H, W, K) → (N, D).

    `kernel` (K, D) and `bias` (D,) whiten the regions, as `Whitening.as_dense` gives them; without them D = K and the
    regions are only normalised.
    """
    vectors = l2_normalise(region_maxima(maps, levels))
    if kernel is not None:
        vectors = l2_normalise(ops.matmul(vectors, kernel) + bias)
    return ops.sum(vectors, axis=1)


GEM_EPSILON = 1e-6
FLOAT32 = {"name": "pooling", "dtype": "float32"}


def mac(maps: Any) -> Any:
    """Maximum activations: f_k = max_p X_k(p) (Tolias et al., 1511.05879)."""
    return ops.max(maps, axis=(1, 2))


def spoc(maps: Any) -> Any:
    """Sum pooling without a prior: f_k = Σ_p X_k(p) (Babenko and Lempitsky, 1510.07493)."""
    return ops.sum(maps, axis=(1, 2))


def spoc_prior(maps: Any) -> Any:
    """Sum pooling with the centre prior: f_k = Σ_p exp(−d²/2σ²) X_k(p) (Babenko and Lempitsky, 1510.07493, equation 3).

    d is the distance of p to the centre, σ a third of the distance from the centre to the nearest border, min(H, W)/2.
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
    # The mean is taken relative to the largest value, so that no power overflows. f doesn't depend on that scale.
    largest = ops.stop_gradient(ops.max(maps, axis=(1, 2), keepdims=True))
    mean = ops.mean(ops.exp(p * ops.log(maps / largest)), axis=(1, 2))  # several times as fast as a power
    return largest[:, 0, 0] * ops.power(mean, 1 / p)


def crow(maps: Any) -> Any:
    """Cross-dimensional weighting: f_k = C_k Σ_p S(p) X_k(p) (Kalantidis et al., 1512.04065, section 3).

    S = √(s / ‖s‖₂) with s = Σ_k X_k; C_k = log(Σ_j Q_j / Q_k) with Q_k the share of positions at which X_k is not zero,
    and 0 where Q_k = 0.
    """
    total = ops.sum(maps, axis=3)
    active = total > 0
    # Where s is zero, so is every X_k and their product's gradient; the root's own gradient there is infinite.
    squares = ops.sum(ops.square(total), axis=(1, 2), keepdims=True)
    share = ops.where(active, total, 1) * ops.rsqrt(ops.where(squares > 0, squares, 1))
    spatial = ops.where(active, ops.sqrt(share), 0)

    nonzero = ops.mean(ops.cast(maps > 0, maps.dtype), axis=(1, 2))
    ratio = ops.sum(nonzero, axis=1, keepdims=True) / ops.where(nonzero > 0, nonzero, 1)
    channel = ops.where(nonzero > 0, ops.log(ops.where(nonzero > 0, ratio, 1)), 0)
    return channel * ops.einsum("nhw,nhwk->nk", spatial, maps)


_PLAIN: dict[str, Callable[[Any], Any]] = {"mac": mac, "spoc": spoc, "spoc-prior": spoc_prior, "crow": crow}


@keras.saving.register_keras_serializable(package="dim")
class PlainPooling(keras.layers.Layer):  # type: ignore[misc]
    """A pooling without weights: "mac", "spoc", "spoc-prior" or "crow"."""

    def __init__(self, method: str, **options: Any) -> None:
        super().__init__(**FLOAT32 | options)
        self.method = method

    def call(self, maps: Any) -> Any:
        """Maps (N, H, W, K) → (N, K)."""
        return _PLAIN[self.method](maps)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this layer again."""
        return {**super().get_config(), "method": self.method}


@keras.saving.register_keras_serializable(package="dim")
class GeM(keras.layers.Layer):  # type: ignore[misc]
    """`gem` with a learnable exponent, the weight `p`, shared by all channels."""

    def __init__(self, p: float = 3.0, **options: Any) -> None:
        super().__init__(**FLOAT32 | options)
        self.start = p

    def build(self, _shape: tuple[int | None, ...]) -> None:
        """Creates `p`, a scalar."""
        self.p = self.add_weight(name="p", shape=(), initializer=keras.initializers.Constant(self.start))

    def call(self, maps: Any) -> Any:
        """Maps (N, H, W, K) → (N, K)."""
        return gem(maps, self.p)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this layer again."""
        return {**super().get_config(), "p": self.start}


@keras.saving.register_keras_serializable(package="dim")
class RMAC(keras.layers.Layer):  # type: ignore[misc]
    """`rmac` of `levels` levels; with `dimension`, its regions are whitened by the weights `kernel` and `bias`.

    These start as the identity; `set_weights(whitening.as_dense())` gives them a whitening fitted on `region_maxima`.
    """

    def __init__(self, levels: int = 3, dimension: int | None = None, **options: Any) -> None:
        super().__init__(**FLOAT32 | options)
        self.levels = levels
        self.dimension = dimension
        self.kernel = self.bias = None

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Creates the weights of the regions' whitening, where there is one."""
        if self.dimension is not None:
            self.kernel = self.add_weight(name="kernel", shape=(shape[-1], self.dimension), initializer="identity")
            self.bias = self.add_weight(name="bias", shape=(self.dimension,), initializer="zeros")

    def call(self, maps: Any) -> Any:
        """Maps (N, H, W, K) → (N, `dimension` or K)."""
        return rmac(maps, self.levels, self.kernel, self.bias)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this layer again."""
        return {**super().get_config(), "levels": self.levels, "dimension": self.dimension}


POOLINGS: dict[str, Callable[..., keras.layers.Layer]] = {
    **{method: partial(PlainPooling, method) for method in _PLAIN},
    "gem": GeM,
    "rmac": RMAC,
}
