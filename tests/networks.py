"""Networks and photos for the tests of what they are exported to."""

import keras
import numpy as np

from dim.model import network

# Of photos. Pooled at block4_conv3, their maps are an eighth of it: many shapes of few pixels.
SIZES = [(48, 80), (80, 48), (32, 32), (33, 200), (240, 40), (64, 96), (32, 31), (16, 160), (160, 8)]


def trained(spec):
    """The network of `spec`, its head's weights as none of them begins, and its batch statistics as after training."""
    generator = np.random.default_rng(0)
    model = network.build(spec)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    for name in {"pca", "pooling"} & {layer.name for layer in model.layers}:
        weights = model.get_layer(name).get_weights()
        model.get_layer(name).set_weights([np.asarray(w) + 0.1 * generator.standard_normal(w.shape) for w in weights])
    return model


def images(height, width):
    """Two photos."""
    return np.random.default_rng(1).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
