"""Gradient descent on a loss of all photos of a batch, which may be larger than memory.

Revaud et al. (Learning with Average Precision, arXiv:1906.07589, section 3.3). The first pass computes the descriptors
and keeps no activations. The loss and its gradient with respect to the descriptors need nothing else. The second pass
runs the network forward and backward on one chunk of photos after the other, and adds up the gradients with respect to
the weights. So memory holds the activations of one chunk only, and the sum is the gradient of the whole batch.

The replicas divide the photos of the batch. After the first pass, each gets the descriptors of all.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from dim.model.backend import keras
from dim.train.loss import ANY
from dim.train.step import (
    Packed,
    TrainedNetwork,
    applied,
    embed_each_group,
    local_replica,
    local_replicas,
    packed_dtype,
    unpacked,
)

ACTIVE = 1e-6  # a smaller loss is a rounding error


class TwoPassStep:
    """A step of gradient descent on a listwise loss. All layers run as in inference, as in `dim.train.step.Step`.

    `optimizer` must be built for the variables of `trained`. `loss` takes the descriptors (N, D) and the labels (N,) of
    the whole batch, and the greatest cosine of a negative. It returns the loss of each photo, (N,).
    """

    def __init__(
        self, trained: TrainedNetwork, optimizer: keras.optimizers.Optimizer, loss: Callable[..., Any]
    ) -> None:
        self._strategy, self._head, self._variables = trained.strategy, trained.step_model, trained.variables
        self._optimizer, self._loss = optimizer, loss
        self._dtype = packed_dtype(self._head)
        places = tf.TensorSpec((None,), tf.int32)
        replica = (tf.TensorSpec((None,), self._dtype), tf.TensorSpec((None, 4), tf.int32), places)
        # All inputs share one trace, as in `Step`.
        number = tf.TensorSpec((), tf.float32)
        signature = ([replica] * local_replicas(self._strategy), places, number, number)
        self._run = tf.function(self._on_all, input_signature=signature)

    def __call__(
        self, images: list[Packed], places: list[np.ndarray], labels: np.ndarray, most_similar: float = ANY
    ) -> tuple[float, int]:
        """Takes the step. All workers must call it.

        Args:
            images: The photos of each replica of this worker. A group is a chunk of the second pass.
            places: Per replica: the place of each photo among the photos of the whole batch, (U,). Each photo of the
                batch is on one replica.
            labels: The label of each photo of the whole batch, whole numbers (N,).
            most_similar: The greatest cosine of a negative.

        Returns:
            The mean loss over the photos that have a positive (NaN if a weight is not finite), and the number of photos
            with a loss.
        """
        dtype, parts = self._dtype.as_numpy_dtype, []
        for image, where in zip(images, places, strict=True):
            in_order_of_packing = np.asarray(where, np.int32)[np.argsort(image.position)]
            parts.append((image.flat.astype(dtype, copy=False), image.groups, in_order_of_packing))
        counts = np.bincount(labels)
        queries = counts[counts > 1].sum()
        constants = [tuple(map(tf.constant, part)) for part in parts]
        numbers = tf.constant(float(queries)), tf.constant(most_similar, tf.float32)
        loss, active = self._run(constants, tf.constant(labels, tf.int32), *numbers)
        return float(loss), int(active)

    def _on_all(self, parts: list[Any], labels: tf.Tensor, queries: tf.Tensor, most_similar: tf.Tensor) -> Any:
        results = self._strategy.run(self._on_replica, args=(parts, labels, queries, most_similar))
        # All replicas compute the same loss.
        return tuple(self._strategy.experimental_local_results(result)[0] for result in results)

    def _on_replica(self, parts: list[Any], labels: tf.Tensor, queries: tf.Tensor, most_similar: tf.Tensor) -> Any:
        flat, groups, places = parts[local_replica(len(parts))]
        own = embed_each_group(self._head, flat, groups, parallel=1)
        # Each place is filled by one replica and zero on the others, so the sum is exact for any number of replicas.
        own = tf.scatter_nd(places[:, None], own, (tf.size(labels), self._head.output_shape[-1]))
        descriptors = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, own)
        with tf.GradientTape() as tape:
            tape.watch(descriptors)
            losses = self._loss(descriptors, labels, most_similar)
            loss = tf.reduce_sum(losses) / queries
        slopes = tf.gather(tape.gradient(loss, descriptors), places)
        gradients = self._backward(flat, groups, slopes)
        loss = applied(self._optimizer, gradients, self._variables, loss)
        return loss, tf.math.count_nonzero(losses > ACTIVE, dtype=tf.int32)

    def _backward(self, flat: tf.Tensor, groups: tf.Tensor, slopes: tf.Tensor) -> list[tf.Tensor]:
        """The gradients with respect to the weights, given those with respect to the descriptors, `slopes` (U, D)."""
        values = [variable.value for variable in self._variables]
        sums = [tf.zeros_like(value) for value in values]
        start, first = 0, 0
        for index in tf.range(tf.shape(groups)[0]):
            # By default, the next chunks would begin before the memory of this one is free.
            tf.autograph.experimental.set_loop_options(parallel_iterations=1)
            end, last = start + tf.reduce_prod(groups[index]), first + groups[index][0]
            with tf.GradientTape() as tape:
                descriptors = self._head(unpacked(self._head, flat[start:end], groups[index]), training=False)
            found = tape.gradient(descriptors, values, output_gradients=slopes[first:last])
            sums = [total + part for total, part in zip(sums, found, strict=True)]
            start, first = end, last
        return sums
