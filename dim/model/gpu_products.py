"""Products of float32 matrices on the GPU that Ray has assigned to a task."""

import functools

import numpy as np

from dim.model import devices


def multiply(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Writes left·rightᵀ, (n, m), to `out` and returns it. `left` is (n, D), `right` is (m, D), all are float32.

    The products are as accurate as those of a CPU. TensorFlow computes on the CPU in a task without a GPU.
    """
    import tensorflow as tf  # noqa: PLC0415  (only tasks with a GPU need TensorFlow)

    _prepare()
    out[...] = tf.matmul(left, right, transpose_b=True).numpy()
    return out


@functools.cache
def _prepare() -> None:
    import tensorflow as tf  # noqa: PLC0415

    devices.use_assigned_gpus()
    # TensorFloat-32 rounds the factors to 11 bits, which is less accurate than exact search allows for.
    tf.config.experimental.enable_tensor_float_32_execution(False)
