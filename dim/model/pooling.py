"""Pooling: activation maps X (N, H, W, K), non-negative, → one vector an image (N, K), not yet normalised.

Each pooling is a plain function and, under its name in `POOLINGS`, a layer called "pooling" that computes in float32
whatever the backbone's precision. H and W may be unknown until run time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from dim.model.backend import keras, ops
from dim.model.positions import positions
from dim.model.regions import rmac

EPSILON = 1e-6
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
    maps = ops.maximum(maps, EPSILON)
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
