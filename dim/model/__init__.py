"""The descriptor network: backbone → pooling → L2 → PCA → L2. TensorFlow is imported by what builds it, not before."""

import typing

if typing.TYPE_CHECKING:
    from dim.model.backend import keras


def load(path: str) -> "keras.Model":
    """The network in the model folder `path`, or the off-the-shelf network of that name, as a plain `keras.Model`.

    It takes uint8 RGB (N, H, W, 3) and returns float32 L2-normalised descriptors (N, D).
    """
    from dim.model import network, spec  # noqa: PLC0415  (keras is heavy, and most of dim does without)

    return network.load(spec.resolve(path))
