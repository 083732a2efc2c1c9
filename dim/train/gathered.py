"""What each worker has, brought to all of them. All must call at the same point: each waits for the others."""

import json
from typing import Any

import numpy as np
import tensorflow as tf


def from_all(strategy: tf.distribute.Strategy, values: np.ndarray) -> np.ndarray:
    """The `values` (n, …) of all workers, in their order, (workers × n, …); n is the same for each."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return values
    gathered: np.ndarray = strategy.gather(tf.constant(values), axis=0).numpy()
    return gathered


def objects_from_all(strategy: tf.distribute.Strategy, value: Any) -> list[Any]:
    """What JSON makes of the `value` of each worker, in their order."""
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = from_all(strategy, np.array([len(content)]))
    padded = np.zeros((1, sizes.max()), np.int32)  # bytes can't be gathered
    padded[0, : len(content)] = content
    rows = from_all(strategy, padded).astype(np.uint8)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
