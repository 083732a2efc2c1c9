"""The network in training: cut into a frozen trunk, computed once for each photo, and the head that is trained."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from dim.model import network
from dim.model.backbones import BACKBONES
from dim.model.backend import keras
from dim.model.spec import Spec
from dim.train.step import local_replica, local_replicas

# The layer below which nothing is trained; None: nothing is frozen, and what is kept is the decoded photo.
CUTS: dict[str, Callable[[Spec], str | None]] = {
    "pca": lambda _: "l2",
    "block5": lambda spec: BACKBONES[spec.backbone].tail,
    "all": lambda _: None,
}


class Forward:
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


class Trainee:
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
        self.trunk = Forward(strategy, trunk, tf.float16) if trunk else None
        self._whole = Forward(strategy, self.head, tf.float32)
        self._pooled = Forward(strategy, network.part(model, self.cut, "l2"), tf.float32) if self.cut != "l2" else None

    def dimension(self, pooled: bool) -> int:
        """The size of a descriptor, or of one before the PCA layer."""
        return int((self.model.get_layer("l2") if pooled else self.model).output.shape[-1])

    def describe(self, activations: np.ndarray, pooled: bool) -> np.ndarray:
        """Activations at the cut (N, …) → descriptors (N, D) float32; with `pooled`, those before the PCA layer."""
        if not pooled:
            return self._whole(activations)
        return self._pooled(activations) if self._pooled else activations.astype(np.float32)
