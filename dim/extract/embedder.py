"""How an actor computes descriptors: uint8 images in, descriptors out.

A `Recipe` says which network, precision, scales and whitening are used. `Embedder` loads the network. `Forward` batches
images of any shapes, runs several passes at once on a CPU, and makes smaller batches if memory runs short.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from dim.app import environment
from dim.data.limits import LIMITS, Limits
from dim.model import devices
from dim.model.spec import Source
from dim.model.whitening import Whitening

log = logging.getLogger(__name__)


# Default images per forward pass: GPU_BATCH on a GPU. On a CPU, larger passes are no faster, so a pass has at most
# CPU_BATCH images with CPU_PIXELS pixels in all. `Forward` runs smaller passes if memory runs short.
CPU_BATCH, CPU_PIXELS, GPU_BATCH = 32, 8 * 224**2, 256


def default_batch_size(image_size: int, gpu: bool) -> int:
    """The most images of a forward pass, if the user doesn't say; the images have sides of `image_size` pixels."""
    return GPU_BATCH if gpu else max(1, min(CPU_BATCH, CPU_PIXELS // image_size**2))


def set_up_tensorflow(threads: int, streams: int = 1, *, one_shape: bool = False) -> None:
    """Gives TensorFlow the GPUs that Ray assigned, and `threads` threads, which `streams` passes at a time share. If
    TensorFlow has computed anything in this process, it keeps its threads. `one_shape`: nearly all batches have the
    same shape and number of images.
    """
    set_environment(one_shape=one_shape)
    import tensorflow as tf  # noqa: PLC0415

    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(max(1, threads // streams))
        tf.config.threading.set_inter_op_parallelism_threads(streams)
    devices.use_assigned_gpus()


def set_environment(*, one_shape: bool) -> None:
    """Sets the environment variables that TensorFlow reads when it is imported, as far as the user has not set them."""
    os.environ |= environment.tensorflow_variables()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # With autotuning, TensorFlow times all of cuDNN's algorithms for each new input shape of a convolution, batch size
    # included, and takes the fastest (tensorflow/core/kernels/conv_ops_gpu.cc). If shapes vary, the timing costs more
    # than it saves. Without autotuning, cuDNN's heuristics choose.
    os.environ.setdefault("TF_CUDNN_USE_AUTOTUNE", "1" if one_shape else "0")


@dataclass(frozen=True)
class Recipe:
    """How images become descriptors. `dim.extract.config` says how flags become a recipe.

    `scales_mean` combines the descriptors of the `scales`; `whitening` is applied to the result. `scaled_decode` allows
    decoding large JPEGs at a fraction of their size. `limits` bound the sizes of photos and change no descriptor.
    """

    source: Source
    precision: str
    scales: tuple[float, ...] = (1.0,)
    scales_mean: str = "mean"
    whitening: Whitening | None = None
    scaled_decode: bool = False
    limits: Limits = LIMITS


class Embedder:
    """The network of a recipe. It runs `streams` passes at a time, each of at most `batch_size` images."""

    def __init__(self, recipe: Recipe, batch_size: int, streams: int = 1) -> None:
        import tensorflow as tf  # noqa: PLC0415

        from dim.model import layers, network  # noqa: PLC0415

        model = network.load(recipe.source, recipe.precision)
        # One TensorFlow trace serves all shapes and batch sizes. A trace takes seconds, and its memory is never freed.
        function = tf.function(
            lambda images: layers.multi_scale_descriptors(model, images, recipe.scales, recipe.scales_mean),
            input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)],
        )
        self._forward = Forward(function, batch_size, streams)
        self._whitening = recipe.whitening
        self.dimension = self._whitening.projection.shape[0] if self._whitening else model.output_shape[-1]

    def embed(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Computes descriptors, float32 (N, D), of N uint8 images (H, W, 3). Images of equal shape share passes."""
        if not images:
            return np.zeros((0, self.dimension), np.float32)
        parts, order = self._forward(images)
        descriptors = np.concatenate(parts)[np.argsort(order)]
        return self._whitening.apply(descriptors) if self._whitening else descriptors


def batches(images: Sequence[np.ndarray], size: int) -> Iterator[tuple[list[int], np.ndarray]]:
    """Groups images (H, W, 3) by shape; yields the positions and the stack of at most `size` images at a time."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(row)
    for rows in by_shape.values():
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            yield batch, np.stack([images[row] for row in batch])


class Forward:
    """Runs a function, which computes a batch of images of one shape, on images of any shapes.

    On a CPU, independent passes of one thread each keep all cores busy. If a pass had several threads, each layer would
    wait for the slowest thread, which shares its core with a decoding task. A GPU runs one large pass at a time.
    `function`: a tf.function of uint8 batches (N, H, W, 3). `streams`: passes that run at the same time.
    """

    def __init__(self, function: Callable[[np.ndarray], Any], batch_size: int, streams: int) -> None:
        self._function, self._batch_size, self._streams = function, batch_size, streams
        self._threads = ThreadPoolExecutor(streams, thread_name_prefix="forward")

    def __call__(self, images: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
        """Returns one array (n, …) per pass, and for each row of these arrays the position of its image in `images`."""
        size = min(self._batch_size, -(-len(images) // self._streams))
        order: list[int] = []
        begun = []
        for rows, batch in batches(images, size):
            begun.append(self._threads.submit(self._fitting, batch))  # runs while the next batch is stacked
            order.extend(rows)
        return [part.numpy() for batch in begun for part in batch.result()], order

    def _fitting(self, batch: np.ndarray) -> list[Any]:
        """Computes `batch` in parts that fit into memory, and returns their results. Later batches get no larger parts.

        Raises TensorFlow's ResourceExhaustedError if a single image does not fit.
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
            log.info("%d images at once do not fit into memory; going on with %d", len(batch), self._batch_size)
        return self._fitting(batch[:half]) + self._fitting(batch[half:])
