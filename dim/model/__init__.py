"""The descriptor network: backbone → pooling → L2 [→ PCA → L2]. Importing this package does not import TensorFlow."""

import typing

if typing.TYPE_CHECKING:
    from dim.model.backend import keras


def load(path: str) -> "keras.Model":
    """Loads a descriptor network as a plain `keras.Model`.

    Args:
        path: A model folder, or the name of an off-the-shelf network such as "vgg16-gem@block5_conv3".

    Returns:
        A model from uint8 RGB (N, H, W, 3) to L2-normalised float32 descriptors (N, D).

    Raises:
        UserError: There is no such model, or its weights cannot be read.
    """
    from dim.model import network, spec  # noqa: PLC0415  (most of dim does not need Keras, which is slow to import)

    return network.load(spec.resolve(path))
