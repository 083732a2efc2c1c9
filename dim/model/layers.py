"""L2 normalisation, which stands after the pooling, after the PCA layer, and round the regions of R-MAC.

Where the pixels of a map are, as values: a graph of Keras's operations has no way to ask for a size that is unknown
until run time, but it can count.

What each backbone expects of its input, as one layer at the head of the network.

Multi-scale descriptors: L2(mean, or GeM-mean, over scales of L2-normalised descriptors).

Radenović et al., 1711.02512, section 3.5: scales 1, 1/√2, 1/2; their multi-scale GeM uses the network's p (3 here).
"""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

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


def positions(maps: Any, axis: int) -> Any:
    """0, 1, … along the height (axis 1) or width (axis 2) of maps (N, H, W, K), for each image: (N, H) or (N, W)."""
    line = maps[:, :, 0, 0] if axis == 1 else maps[:, 0, :, 0]
    return ops.cumsum(ops.ones_like(line), axis=1) - 1


@dataclass(frozen=True)
class Preprocessing:
    """Channel order, then (x − mean) / scale for each channel; `mean` and `scale` in the order after reordering."""

    order: str
    mean: tuple[float, float, float]
    scale: tuple[float, float, float]


PREPROCESSINGS = {
    "caffe": Preprocessing("bgr", (103.939, 116.779, 123.68), (1.0, 1.0, 1.0)),
    "unit": Preprocessing("rgb", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    "symmetric": Preprocessing("rgb", (128.0, 128.0, 128.0), (128.0, 128.0, 128.0)),
    "torch": Preprocessing("rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}


@keras.saving.register_keras_serializable(package="dim")
class Preprocess(keras.layers.Layer):  # type: ignore[misc]
    """uint8 RGB (N, H, W, 3) → float32, as the `PREPROCESSINGS` entry `mode` says."""

    def __init__(self, mode: str, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", "name": "preprocess", "trainable": False} | kwargs, autocast=False)
        self.mode = mode

    def call(self, images: Any) -> Any:
        """Reorders, centres and scales the channels."""
        how = PREPROCESSINGS[self.mode]
        x = ops.cast(images, "float32")
        if how.order == "bgr":
            x = ops.flip(x, axis=-1)
        return (x - ops.convert_to_tensor(how.mean)) / ops.convert_to_tensor(how.scale)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape stays."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The mode, for `.keras` files."""
        return {**super().get_config(), "mode": self.mode}


GEM_P = 3.0
MIN_SIDE = 32  # as for photos: VGG16 halves its input five times


def combined(model: keras.Model, images: Any, scales: tuple[float, ...], mean: str) -> Any:
    """The descriptors (N, D) of uint8 `images` (N, H, W, 3), each seen at all `scales`; `mean` is "mean" or "gem"."""
    if scales == (1.0,):
        return model(images, training=False)
    descriptors = ops.stack([model(_resized(images, scale), training=False) for scale in scales])
    if mean == "gem":
        # Descriptors may be negative after a PCA layer, so the power keeps the sign.
        cubes = ops.mean(ops.sign(descriptors) * ops.power(ops.abs(descriptors), GEM_P), axis=0)
        return l2_normalise(ops.sign(cubes) * ops.power(ops.abs(cubes), 1 / GEM_P))
    return l2_normalise(ops.mean(descriptors, axis=0))


def _resized(images: Any, scale: float) -> Any:
    """`images` by bilinear interpolation, antialiased; no side is left under 32."""
    if scale == 1:
        return images
    sides = tf.cast(tf.shape(images)[1:3], tf.float32) * scale
    size = tf.maximum(tf.cast(tf.round(sides), tf.int32), MIN_SIDE)
    # Keras's own resize takes no size that is known at run time only.
    resized = tf.image.resize(images, size, antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
