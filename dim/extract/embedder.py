"""The network at work: uint8 images in, descriptors out."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dim.model.spec import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How images become descriptors: the network, its precision, the scales, the whitening file, and whether JPEGs may
    be decoded at a fraction of their size.
    """

    source: Source
    precision: str
    scales: tuple[float, ...] = (1.0,)
    scales_mean: str = "mean"
    whitening: str | None = None
    scaled_decode: bool = False


def set_up_tensorflow(threads: int) -> None:
    """Gives TensorFlow `threads` threads and lets it take GPU memory as it needs it; to be called first."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf  # noqa: PLC0415

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


def batches(images: Sequence[np.ndarray], size: int) -> Iterator[tuple[list[int], np.ndarray]]:
    """At most `size` at a time, uint8 images (H, W, 3) of one shape, stacked, with their positions in `images`."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(row)
    for rows in by_shape.values():
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            yield batch, np.stack([images[row] for row in batch])


class Embedder:
    """Holds the network of a recipe; `embed` maps images of any shapes to descriptors."""

    def __init__(self, recipe: Recipe, batch_size: int) -> None:
        import tensorflow as tf  # noqa: PLC0415

        from dim.model import network, scales, whitening  # noqa: PLC0415

        model = network.load(recipe.source, recipe.precision)
        self._batch_size = batch_size
        # One trace serves every shape and batch size: a trace for each would cost seconds and memory without bound.
        self._forward = tf.function(
            lambda images: scales.combined(model, images, recipe.scales, recipe.scales_mean),
            input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)],
        )
        self._whitening = whitening.load(recipe.whitening) if recipe.whitening else None
        self.dimension = self._whitening.projection.shape[0] if self._whitening else model.output_shape[-1]

    def embed(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Descriptors (N, D) float32 of uint8 images, each (H, W, 3); images of one shape go through together."""
        if not images:
            return np.zeros((0, self.dimension), np.float32)
        parts, order = [], []
        for rows, batch in batches(images, self._batch_size):
            parts.extend(self._fitting(batch))  # a GPU computes it while the next is stacked
            order.extend(rows)
        descriptors = np.concatenate([part.numpy() for part in parts])[np.argsort(order)]
        return self._whitening.apply(descriptors) if self._whitening else descriptors

    def _fitting(self, batch: np.ndarray) -> list[Any]:
        """The descriptors of `batch` (N, H, W, 3), in parts that the memory holds; their size is kept for what follows.

        Raises TensorFlow's ResourceExhaustedError where it doesn't hold one image.
        """
        import tensorflow as tf  # noqa: PLC0415

        try:
            return [self._forward(batch)]
        except tf.errors.ResourceExhaustedError:
            if len(batch) == 1:
                raise
        half = -(-len(batch) // 2)
        self._batch_size = min(self._batch_size, half)
        log.info("memory holds no %d images at once; going on with %d", len(batch), self._batch_size)
        return self._fitting(batch[:half]) + self._fitting(batch[half:])
