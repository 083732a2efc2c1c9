"""The network at work: uint8 images in, descriptors out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dim.data.limits import LIMITS, Limits
from dim.extract.forward import Forward
from dim.model.spec import Source
from dim.model.whitening import Whitening


@dataclass(frozen=True)
class Recipe:
    """How images become descriptors: the network, its precision, the scales, the whitening, and whether JPEGs may be
    decoded at a fraction of their size. `limits`, which change no descriptor, say what a photo may need at most.
    """

    source: Source
    precision: str
    scales: tuple[float, ...] = (1.0,)
    scales_mean: str = "mean"
    whitening: Whitening | None = None
    scaled_decode: bool = False
    limits: Limits = LIMITS


class Embedder:
    """Holds the network of a recipe; `embed` maps images of any shapes to descriptors."""

    def __init__(self, recipe: Recipe, batch_size: int, streams: int = 1) -> None:
        import tensorflow as tf  # noqa: PLC0415

        from dim.model import network, scales  # noqa: PLC0415

        model = network.load(recipe.source, recipe.precision)
        # One trace serves every shape and batch size: a trace for each would cost seconds and memory without bound.
        function = tf.function(
            lambda images: scales.combined(model, images, recipe.scales, recipe.scales_mean),
            input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)],
        )
        self._forward = Forward(function, batch_size, streams)
        self._whitening = recipe.whitening
        self.dimension = self._whitening.projection.shape[0] if self._whitening else model.output_shape[-1]

    def embed(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Descriptors (N, D) float32 of uint8 images, each (H, W, 3); images of one shape go through together."""
        if not images:
            return np.zeros((0, self.dimension), np.float32)
        parts, order = self._forward(images)
        descriptors = np.concatenate(parts)[np.argsort(order)]
        return self._whitening.apply(descriptors) if self._whitening else descriptors
