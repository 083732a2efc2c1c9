"""Defines the layers for preprocessing and L2 normalisation, and computes descriptors at several scales."""

from dataclasses import dataclass
from typing import Any

from dim.model.backend import keras, ops

EPSILON = 1e-6  # vectors that are shorter than this are divided by it, not by their length
GEM_P = 3.0  # the exponent of the generalised mean over scales
MIN_SIDE = 32  # pixels; no side of a resized photo is shorter, because VGG16 halves the sides of its input five times


@dataclass(frozen=True)
class Preprocessing:
    """How to preprocess: put the channels into `order`, "rgb" or "bgr", then compute (x − mean) / scale for each."""

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
    """Reorders, centres and scales the channels as a backbone expects them.

    Args:
        mode: A key of `PREPROCESSINGS`.

    Input shape: (N, H, W, 3), uint8 RGB.
    Output shape: (N, H, W, 3), float32.
    """

    def __init__(self, mode: str, **options: Any) -> None:
        super().__init__(**{"dtype": "float32", "name": "preprocess", "trainable": False} | options, autocast=False)
        self.mode = mode

    def call(self, images: Any) -> Any:
        """Preprocesses the images."""
        how = PREPROCESSINGS[self.mode]
        x = ops.cast(images, "float32")
        if how.order == "bgr":
            x = ops.flip(x, axis=-1)
        return (x - ops.convert_to_tensor(how.mean)) / ops.convert_to_tensor(how.scale)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for `.keras` files."""
        return {**super().get_config(), "mode": self.mode}


def l2_normalise(x: Any) -> Any:
    """Returns x / max(‖x‖₂, 1e-6) along the last axis. A zero vector stays zero and has a finite gradient."""
    # The maximum is taken before the root, because the gradient of a norm at zero is NaN.
    return x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), EPSILON**2))


@keras.saving.register_keras_serializable(package="dim")
class L2Normalisation(keras.layers.Layer):  # type: ignore[misc]
    """Scales vectors to length 1 by `l2_normalise`. It computes in float32, whatever the precision of other layers.

    Input shape: (..., K).
    Output shape: (..., K).
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"dtype": "float32"} | options)

    def call(self, x: Any) -> Any:
        """Normalises the vectors."""
        return l2_normalise(x)


def positions(maps: Any, axis: int) -> Any:
    """Returns 0, 1, … along the height (axis 1) or the width (axis 2) of maps (N, H, W, K), as (N, H) or (N, W).

    A cumulative sum counts the positions, because no operation of Keras gives a size that is unknown until run time.
    """
    line = maps[:, :, 0, 0] if axis == 1 else maps[:, 0, :, 0]
    return ops.cumsum(ops.ones_like(line), axis=1) - 1


def multi_scale_descriptors(model: keras.Model, images: Any, scales: tuple[float, ...], mean: str) -> Any:
    """Returns L2-normalised means (N, D) of descriptors at several scales (Radenović et al., 1711.02512, section 3.5).

    Args:
        model: A network that returns L2-normalised descriptors.
        images: uint8 RGB (N, H, W, 3).
        scales: The factors by which the images are resized, such as (1, 1/√2, 1/2). No side gets below 32 pixels.
        mean: "mean", or "gem" for the generalised mean with exponent 3. (The paper uses GeM's learned exponent.)
    """
    if scales == (1.0,):
        return model(images, training=False)
    descriptors = ops.stack([model(resized(images, scale), training=False) for scale in scales])
    if mean == "gem":
        # A PCA layer makes some values negative. So the power is taken of the absolute value, and the sign is kept.
        cubes = ops.mean(ops.sign(descriptors) * ops.power(ops.abs(descriptors), GEM_P), axis=0)
        return l2_normalise(ops.sign(cubes) * ops.power(ops.abs(cubes), 1 / GEM_P))
    return l2_normalise(ops.mean(descriptors, axis=0))


def resized(images: Any, scale: float) -> Any:
    """Returns uint8 `images` (N, H, W, 3), resized by the factor `scale` with antialiased bilinear interpolation."""
    if scale == 1:
        return images
    import tensorflow as tf  # noqa: PLC0415  (the layers above run on other backends, too)

    sides = tf.cast(tf.shape(images)[1:3], tf.float32) * scale
    size = tf.maximum(tf.cast(tf.round(sides), tf.int32), MIN_SIDE)
    # `keras.ops.image.resize` does not accept a size that is unknown until run time.
    resized = tf.image.resize(images, size, antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
