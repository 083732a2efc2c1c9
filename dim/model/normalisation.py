"""L2 normalisation, which stands after the pooling, after the PCA layer, and round the regions of R-MAC."""

from typing import Any

from dim.model.backend import keras, ops

EPSILON = 1e-6


def l2_normalise(x: Any) -> Any:
    """x / max(‖x‖₂, 1e-6) along the last axis; a zero vector stays zero and has a finite gradient."""
    # The bound stands inside the root: the gradient of a norm at zero is not a number.
    return x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), EPSILON**2))


@keras.saving.register_keras_serializable(package="dim")
class L2Normalisation(keras.layers.Layer):  # type: ignore[misc]
    """`l2_normalise` as a layer, in float32 whatever the precision of the layers before it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"dtype": "float32"} | options)

    def call(self, x: Any) -> Any:
        """Vectors (…, K) → vectors of length 1 (…, K)."""
        return l2_normalise(x)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the input."""
        return shape
