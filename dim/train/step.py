"""The triplet loss.

L = max(0, m + ‖a − p‖² − ‖a − n‖²) over L2-normalised descriptors; m = 0.1 by default. (Gordo et al., 1604.01325,
section 3.2, has a factor ½, which only scales the learning rate.)

One step of gradient descent on a batch of triplets, under any tf.distribute strategy.

The strategy sums the replicas' gradients, so each divides its loss by the size of the *whole* batch.

The network in training: cut into a frozen trunk, computed once for each photo, and the head that is trained.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from dim.model import network
from dim.model.backbones import BACKBONES
from dim.model.backend import keras, ops
from dim.model.spec import Spec


def triplet_loss(anchors: Any, positives: Any, negatives: Any, margin: float) -> Any:
    """The loss of each triplet, (B,), from its descriptors, each (B, D)."""
    distance_ap = ops.sum(ops.square(anchors - positives), axis=-1)
    distance_an = ops.sum(ops.square(anchors - negatives), axis=-1)
    return ops.relu(margin + distance_ap - distance_an)


@dataclass(frozen=True)
class Packed:
    """Arrays of any shapes as one: `flat`, all values; `groups` (G, 4), the number and the shape (height, width,
    channels) of each run of equal shapes; `position` (N,), where each array came to stand.
    """

    flat: np.ndarray
    groups: np.ndarray
    position: np.ndarray


def packed(arrays: list[np.ndarray]) -> Packed:
    """Packs arrays (H, W, C) or (C,), equal shapes together, so that one trace of the step serves all shapes."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for row, array in enumerate(arrays):
        shapes.setdefault(array.shape, []).append(row)
    order = [row for rows in shapes.values() for row in rows]
    groups = [(len(rows), *(1,) * (3 - len(shape)), *shape) for shape, rows in shapes.items()]
    flat = np.concatenate([arrays[row].reshape(-1) for row in order])
    return Packed(flat, np.array(groups, np.int32), np.argsort(order).astype(np.int32))


def _embed_one_shape(head: keras.Model, flat: tf.Tensor, groups: tf.Tensor) -> tf.Tensor:
    return head(_unpacked(head, flat, groups[0]), training=False)


def _embed_each_shape(head: keras.Model, flat: tf.Tensor, groups: tf.Tensor) -> tf.Tensor:
    count = tf.shape(groups)[0]
    found = tf.TensorArray(tf.float32, count, infer_shape=False, element_shape=(None, head.output_shape[-1]))
    start = 0
    for index in tf.range(count):
        end = start + tf.reduce_prod(groups[index])
        found = found.write(index, head(_unpacked(head, flat[start:end], groups[index]), training=False))
        start = end
    return found.concat()


def _unpacked(head: keras.Model, flat: tf.Tensor, group: tf.Tensor) -> tf.Tensor:
    shape = group if len(head.input_shape) == 4 else group[::3]
    # Keras takes a convolution of an unknown number of channels for a grouped one and compiles it: thrice as slow.
    return tf.ensure_shape(tf.reshape(flat, shape), head.input_shape)


class Step:
    """One step on (each local replica's images, its triplets (3, B) as positions in them, the size of the whole batch).

    `head` maps what is packed to descriptors; `variables` are trained. Layers that behave otherwise in training (batch
    normalisation) keep their inference behaviour, as is usual in fine-tuning for retrieval. `one_shape`: all images
    that are ever packed have the same shape, which doubles the speed, as nothing has to be looped over.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        head: keras.Model,
        variables: list[keras.Variable],
        optimizer: keras.optimizers.Optimizer,
        *,
        margin: float,
        one_shape: bool,
    ) -> None:
        self._strategy, self._head, self._variables, self._optimizer = strategy, head, variables, optimizer
        self._margin, self._embed = margin, _embed_one_shape if one_shape else _embed_each_shape
        flat = tf.TensorSpec((None,), tf.uint8 if head.input.dtype == "uint8" else tf.float16)
        replica = (flat, tf.TensorSpec((None, 4), tf.int32), tf.TensorSpec((3, None), tf.int32))
        # One trace and no other: a worker that traced anew would wait for all-reduces that the others don't know.
        signature = ([replica] * local_replicas(strategy), tf.TensorSpec((), tf.float32))
        self._run = tf.function(self._on_all, input_signature=signature)

    def __call__(self, images: list[Packed], triplets: list[np.ndarray], size: int) -> tuple[float, int]:
        """Takes the step; returns the mean loss and the number of active triplets, over all replicas of all workers."""
        parts = [
            (image.flat, image.groups, image.position[indices]) for image, indices in zip(images, triplets, strict=True)
        ]
        loss, active = self._run(
            [tuple(tf.constant(value) for value in part) for part in parts], tf.constant(float(size))
        )
        return float(loss), int(active)

    def _on_all(self, parts: list[Any], size: tf.Tensor) -> Any:
        results = self._strategy.run(self._on_replica, args=(parts, size))
        total = tf.distribute.ReduceOp.SUM
        return tuple(self._strategy.reduce(total, result, axis=None) for result in results)

    def _on_replica(self, parts: list[Any], size: tf.Tensor) -> Any:
        flat, groups, triplets = parts[local_replica(len(parts))]
        with tf.GradientTape() as tape:
            descriptors = self._embed(self._head, flat, groups)
            anchors, positives, negatives = (tf.gather(descriptors, triplets[side]) for side in range(3))
            losses = triplet_loss(anchors, positives, negatives, self._margin)
            loss = tf.reduce_sum(losses) / size
        gradients = tape.gradient(loss, [variable.value for variable in self._variables])
        self._optimizer.apply(gradients, self._variables)
        # What is not a number need not reach the loss: a ReLU makes zero of it.
        finite = [tf.reduce_all(tf.math.is_finite(variable.value)) for variable in self._variables]
        loss = tf.where(tf.reduce_all(finite), loss, np.nan)
        return loss, tf.math.count_nonzero(losses > 0, dtype=tf.int32)


def local_replicas(strategy: tf.distribute.Strategy) -> int:
    """How many of the strategy's replicas are on this worker."""
    return len(strategy.extended.worker_devices)


def local_replica(count: int) -> int:
    """Inside `strategy.run`: which of this worker's `count` replicas this is."""
    return int(tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group)) % count


# The layer below which nothing is trained; None: nothing is frozen, and what is kept is the decoded photo.
CUTS: dict[str, Callable[[Spec], str | None]] = {
    "pca": lambda _: "l2",
    "block5": lambda spec: BACKBONES[spec.backbone].tail,
    "all": lambda _: None,
}


class ReplicatedForward:
    """A part of the network in inference, on all replicas of this worker, for batches of one shape."""

    def __init__(self, strategy: tf.distribute.Strategy, part: keras.Model, dtype: tf.DType) -> None:
        self._strategy = strategy

        def on_replica(parts: list[tf.Tensor]) -> tf.Tensor:
            return tf.cast(part(parts[local_replica(len(parts))], training=False), dtype)

        self._run = tf.function(lambda parts: strategy.run(on_replica, args=(parts,)), reduce_retracing=True)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """(N, …) → (N, …)."""
        parts = np.array_split(batch, local_replicas(self._strategy))
        outputs = self._strategy.experimental_local_results(self._run([tf.constant(part) for part in parts]))
        return np.concatenate([output.numpy() for output in outputs])


class TrainedNetwork:
    """The network, its cut, and how its parts are run."""

    def __init__(
        self, strategy: tf.distribute.Strategy, model: keras.Model, spec: Spec, layers: str, from_pixels: bool
    ) -> None:
        self.strategy, self.model = strategy, model
        self.cut = CUTS[layers](spec)
        self.head = network.part(model, self.cut, None)
        # New variants of a photo have no activations in common with any before: they are fitted from their pixels.
        self.fitted = model if from_pixels else self.head
        self.variables: list[keras.Variable] = self.head.trainable_variables
        trunk = network.part(model, None, self.cut) if self.cut else None
        self.trunk = ReplicatedForward(strategy, trunk, tf.float16) if trunk else None
        self._whole = ReplicatedForward(strategy, self.head, tf.float32)
        self._pooled = (
            ReplicatedForward(strategy, network.part(model, self.cut, "l2"), tf.float32) if self.cut != "l2" else None
        )

    def dimension(self, pooled: bool) -> int:
        """The size of a descriptor, or of one before the PCA layer."""
        return int((self.model.get_layer("l2") if pooled else self.model).output.shape[-1])

    def describe(self, activations: np.ndarray, pooled: bool) -> np.ndarray:
        """Activations at the cut (N, …) → descriptors (N, D) float32; with `pooled`, those before the PCA layer."""
        if not pooled:
            return self._whole(activations)
        return self._pooled(activations) if self._pooled else activations.astype(np.float32)
