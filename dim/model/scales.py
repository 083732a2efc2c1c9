"""Multi-scale descriptors: L2(mean, or GeM-mean, over scales of L2-normalised descriptors).

Radenović et al., 1711.02512, section 3.5: scales 1, 1/√2, 1/2; their multi-scale GeM uses the network's p (3 here).
"""

from typing import Any

import tensorflow as tf

from dim.model.backend import keras, ops
from dim.model.normalisation import l2_normalise

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
