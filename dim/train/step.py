"""Trains the network by gradient descent on batches of triplets, under any tf.distribute strategy.

`TrainedNetwork` cuts the network into a frozen trunk, whose outputs can be cached, and a trained head.
`Step` runs the head on a batch. The replicas (copies of the network, one per device) divide the images between them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from dim.model import network
from dim.model.backbones import BACKBONES
from dim.model.backend import keras
from dim.model.pooling import region_vectors
from dim.model.spec import Spec
from dim.train.optimizer import apply_gradients

# The cut for each value of --train-layers: the name of the last frozen layer, or None if nothing is frozen. The
# whitening of R-MAC's regions is part of the pooling layer, and is never frozen.
CUTS: dict[str, Callable[[Spec], str | None]] = {
    "pca": lambda spec: spec.layer if spec.region_dimension else "l2",
    "block5": lambda spec: BACKBONES[spec.backbone].tail,
    "all": lambda _: None,
}


class TrainedNetwork:
    """A network cut into a frozen trunk and a trained head.

    Attributes:
        cut: The name of the trunk's last layer; None if nothing is frozen, so that the head takes pixels.
        head: The layers above the cut: activations at the cut → descriptors.
        step_model: The model that a training step runs: the head, or the whole network if `from_pixels`.
        variables: The weights that are trained.
        trunk: Pixels → activations at the cut, float16; None if nothing is frozen.
    """

    def __init__(
        self, strategy: tf.distribute.Strategy, model: keras.Model, spec: Spec, layers: str, from_pixels: bool
    ) -> None:
        self.strategy, self.model = strategy, model
        self.cut = CUTS[layers](spec)
        self.head = network.part(model, self.cut, None)
        # The feature cache has no activations of fresh views, so a step on them begins with the pixels.
        self.step_model = model if from_pixels else self.head
        self.variables: list[keras.Variable] = self.head.trainable_variables
        trunk = network.part(model, None, self.cut) if self.cut else None
        self.trunk = ReplicatedForward(strategy, trunk, tf.float16) if trunk else None
        self._descriptors = ReplicatedForward(strategy, self.head, tf.float32)
        pooled = network.part(model, self.cut, "l2") if self.cut != "l2" else None
        self._pooled = ReplicatedForward(strategy, pooled, tf.float32) if pooled else None
        regions = self._region_vectors(spec) if spec.region_dimension else None
        self._regions = ReplicatedForward(strategy, regions, tf.float32) if regions else None

    def dimension(self, pooled: bool) -> int:
        """The length of a descriptor. If `pooled`, it is the length without the PCA layer."""
        return int((self.model.get_layer("l2") if pooled else self.model).output.shape[-1])

    def _region_vectors(self, spec: Spec) -> Callable[..., Any]:
        maps = network.part(self.model, self.cut, spec.layer) if self.cut != spec.layer else None

        def vectors(activations: Any, training: bool) -> Any:
            return region_vectors(tf.cast(maps(activations, training=training) if maps else activations, tf.float32))

        return vectors

    def regions(self, activations: np.ndarray) -> np.ndarray:
        """The vectors of R-MAC's regions before their whitening, (regions, K), for `activations` at the cut (N, …)."""
        if self._regions is None:
            raise TypeError("only the regions of R-MAC can be whitened")
        found = self._regions(activations)
        return found.reshape(-1, found.shape[-1])

    def describe(self, activations: np.ndarray, pooled: bool) -> np.ndarray:
        """The descriptors, float32 (N, D), of `activations` at the cut (N, …); if `pooled`, without the PCA layer."""
        if not pooled:
            return self._descriptors(activations)
        return self._pooled(activations) if self._pooled else activations.astype(np.float32)


class ReplicatedForward:
    """Runs a part of the network in inference, on all replicas of this worker."""

    def __init__(self, strategy: tf.distribute.Strategy, part: Callable[..., Any], dtype: tf.DType) -> None:
        self._strategy = strategy

        def on_replica(parts: list[tf.Tensor]) -> tf.Tensor:
            return tf.cast(part(parts[local_replica(len(parts))], training=False), dtype)

        self._run = tf.function(lambda parts: strategy.run(on_replica, args=(parts,)), reduce_retracing=True)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """The outputs (N, …) for a batch (N, …) of one shape."""
        parts = np.array_split(batch, local_replicas(self._strategy))
        outputs = self._strategy.experimental_local_results(self._run([tf.constant(part) for part in parts]))
        return np.concatenate([output.numpy() for output in outputs])


@dataclass(frozen=True)
class Packed:
    """Arrays of several shapes in one flat array, grouped by shape. One trace of the step can serve all shapes."""

    flat: np.ndarray  # the values of all arrays, one after the other
    groups: np.ndarray  # number of arrays, height, width and channels of each group of equal shape, (G, 4)
    position: np.ndarray  # the place of each array in the order of packing, (N,)


def packed(arrays: list[np.ndarray], most: int | None = None) -> Packed:
    """Packs `arrays`, each (H, W, C) or (C,). A group has at most `most` arrays."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for row, array in enumerate(arrays):
        shapes.setdefault(array.shape, []).append(row)
    order = [row for rows in shapes.values() for row in rows]
    groups = [
        (min(len(rows) - first, most or len(rows)), *(1,) * (3 - len(shape)), *shape)
        for shape, rows in shapes.items()
        for first in range(0, len(rows), most or len(rows))
    ]
    flat = np.concatenate([arrays[row].reshape(-1) for row in order]) if arrays else np.zeros(0, np.float16)
    return Packed(flat, np.array(groups, np.int32).reshape(-1, 4), np.argsort(order).astype(np.int32))


class Step:
    """A step of gradient descent on a loss of triplets.

    Layers that behave differently in training, such as batch normalisation, run as in inference. This is usual in
    fine-tuning for retrieval.

    `optimizer` must be built for the variables of `trained`. `loss` takes the descriptors of the anchors, positives and
    negatives, each (B, D), and returns the loss of each triplet, (B,). If `one_shape`, all images must have the same
    shape. The step is then twice as fast, because it needs no loop over shapes.
    """

    def __init__(
        self,
        trained: TrainedNetwork,
        optimizer: keras.optimizers.Optimizer,
        loss: Callable[[Any, Any, Any], Any],
        *,
        one_shape: bool,
    ) -> None:
        self._strategy, self._head, self._variables = trained.strategy, trained.step_model, trained.variables
        self._optimizer, self._loss = optimizer, loss
        self._embed = _embed_one_shape if one_shape else embed_each_group
        flat = tf.TensorSpec((None,), packed_dtype(self._head))
        replica = (flat, tf.TensorSpec((None, 4), tf.int32), tf.TensorSpec((3, None), tf.int32))
        # All inputs share one trace. A worker that retraced would wait for all-reduces that other workers do not start.
        signature = ([replica] * local_replicas(self._strategy), tf.TensorSpec((), tf.float32))
        self._run = tf.function(self._on_all, input_signature=signature)

    def __call__(self, images: list[Packed], triplets: list[np.ndarray], size: int) -> tuple[float, int]:
        """Takes the step. All workers must call it.

        Args:
            images: The distinct images of each replica of this worker.
            triplets: Per replica: anchors, positives and negatives as positions in the replica's images, (3, B).
            size: The number of triplets in the whole batch, over all replicas of all workers.

        Returns:
            The mean loss of the whole batch (NaN if a weight is not finite), and the number of triplets with loss > 0.
        """
        replicas = zip(images, triplets, strict=True)
        parts = [(image.flat, image.groups, image.position[indices]) for image, indices in replicas]
        constants = [tuple(map(tf.constant, part)) for part in parts]
        loss, active = self._run(constants, tf.constant(float(size)))
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
            losses = self._loss(anchors, positives, negatives)
            # The strategy sums the replicas' gradients, so each replica divides by the size of the whole batch.
            loss = tf.reduce_sum(losses) / size
        gradients = tape.gradient(loss, [variable.value for variable in self._variables])
        loss = applied(self._optimizer, gradients, self._variables, loss)
        return loss, tf.math.count_nonzero(losses > 0, dtype=tf.int32)


def applied(
    optimizer: keras.optimizers.Optimizer, gradients: list[tf.Tensor], variables: list[keras.Variable], loss: tf.Tensor
) -> tf.Tensor:
    """Updates `variables` by the sum of the replicas' `gradients`. Returns `loss`, or NaN if a weight is not finite."""
    apply_gradients(optimizer, gradients, variables)
    # The loss alone may hide a NaN: a ReLU can turn it into zero.
    finite = [tf.reduce_all(tf.math.is_finite(variable.value)) for variable in variables]
    return tf.where(tf.reduce_all(finite), loss, np.nan)


def packed_dtype(head: keras.Model) -> tf.DType:
    """The type of the packed inputs of `head`: pixels or activations."""
    return tf.uint8 if head.input.dtype == "uint8" else tf.float16


def _embed_one_shape(head: keras.Model, flat: tf.Tensor, groups: tf.Tensor) -> tf.Tensor:
    return head(unpacked(head, flat, groups[0]), training=False)


def embed_each_group(head: keras.Model, flat: tf.Tensor, groups: tf.Tensor, parallel: int = 10) -> tf.Tensor:
    """The descriptors (N, D), float32, of packed images, in the order of packing. Call it inside a `tf.function`.

    `parallel` groups may be in memory at a time.
    """
    count = tf.shape(groups)[0]
    found = tf.TensorArray(tf.float32, count, infer_shape=False, element_shape=(None, head.output_shape[-1]))
    start = 0
    for index in tf.range(count):
        tf.autograph.experimental.set_loop_options(parallel_iterations=parallel)
        end = start + tf.reduce_prod(groups[index])
        found = found.write(index, head(unpacked(head, flat[start:end], groups[index]), training=False))
        start = end
    return found.concat()


def unpacked(head: keras.Model, flat: tf.Tensor, group: tf.Tensor) -> tf.Tensor:
    """The input of `head` for one group of packed images, whose values are `flat`."""
    shape = group if len(head.input_shape) == 4 else group[::3]
    # If the number of channels is unknown, Keras treats convolutions as grouped and compiles them, 3 times slower.
    return tf.ensure_shape(tf.reshape(flat, shape), head.input_shape)


def local_replicas(strategy: tf.distribute.Strategy) -> int:
    """The number of the strategy's replicas on this worker."""
    return len(strategy.extended.worker_devices)


def local_replica(count: int) -> int:
    """The index of the calling replica among the `count` replicas of this worker. Call it inside `strategy.run`."""
    return int(tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group)) % count
