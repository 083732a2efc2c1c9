"""Forward passes: images of any shapes through a function of batches, several passes at once on a CPU.

The network at work: uint8 images in, descriptors out.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from dim.data.limits import LIMITS, Limits
from dim.model import devices
from dim.model.spec import Source
from dim.model.whitening import Whitening

log = logging.getLogger(__name__)


def set_up_tensorflow(threads: int, streams: int = 1, *, one_shape: bool = False) -> None:
    """Gives TensorFlow `threads` threads for `streams` passes at once, and the GPUs that Ray has assigned; to be called
    first. `one_shape`: nearly all passes have the same shape, the number of images included.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # For each new shape of each convolution, TensorFlow runs all of cuDNN's algorithms to keep the fastest
    # (tensorflow/core/kernels/conv_ops_gpu.cc, whose map has batch and sides in its keys). Where shapes vary, that is
    # done again and again: without it, the first that cuDNN's own heuristics name is taken.
    os.environ.setdefault("TF_CUDNN_USE_AUTOTUNE", "1" if one_shape else "0")
    import tensorflow as tf  # noqa: PLC0415

    tf.config.threading.set_intra_op_parallelism_threads(max(1, threads // streams))
    tf.config.threading.set_inter_op_parallelism_threads(streams)
    devices.use_assigned_gpus()


def batches(images: Sequence[np.ndarray], size: int) -> Iterator[tuple[list[int], np.ndarray]]:
    """At most `size` at a time, uint8 images (H, W, 3) of one shape, stacked, with their positions in `images`."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(row)
    for rows in by_shape.values():
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            yield batch, np.stack([images[row] for row in batch])


class Forward:
    """`function`, a tf.function of uint8 batches (N, H, W, 3), for images of any shapes.

    On a CPU, passes of one thread each that wait for nobody leave no core idle; a pass of several threads waits for the
    last of them at each layer, and that one shares its core with a decoder. A GPU takes one large pass.
    """

    def __init__(self, function: Callable[[np.ndarray], Any], batch_size: int, streams: int) -> None:
        self._function, self._batch_size, self._streams = function, batch_size, streams
        self._threads = ThreadPoolExecutor(streams, thread_name_prefix="forward")

    def __call__(self, images: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
        """What `function` gives for each batch, (n, …), and the positions in `images` of all their rows, in order."""
        size = min(self._batch_size, -(-len(images) // self._streams))
        order: list[int] = []
        begun = []
        for rows, batch in batches(images, size):
            begun.append(self._threads.submit(self._fitting, batch))  # which a GPU computes while the next is stacked
            order.extend(rows)
        return [part.numpy() for batch in begun for part in batch.result()], order

    def _fitting(self, batch: np.ndarray) -> list[Any]:
        """The results for `batch`, in parts that the memory holds; their size is kept for what follows.

        Raises TensorFlow's ResourceExhaustedError where it doesn't hold one image.
        """
        import tensorflow as tf  # noqa: PLC0415

        half = -(-len(batch) // 2)
        if len(batch) <= self._batch_size:
            try:
                return [self._function(batch)]
            except tf.errors.ResourceExhaustedError:
                if len(batch) == 1:
                    raise
            self._batch_size = min(self._batch_size, half)
            log.info("memory holds no %d images at once; going on with %d", len(batch), self._batch_size)
        return self._fitting(batch[:half]) + self._fitting(batch[half:])


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

        from dim.model import layers, network  # noqa: PLC0415

        model = network.load(recipe.source, recipe.precision)
        # One trace serves every shape and batch size: a trace for each would cost seconds and memory without bound.
        function = tf.function(
            lambda images: layers.multi_scale_descriptors(model, images, recipe.scales, recipe.scales_mean),
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
