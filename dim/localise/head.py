"""What a network does after its activation map, as arrays: it makes the descriptor of any region of the map.

All poolings are treated as sums of powers, because these have integral images. That is exact for GeM and SPoC. MAC is
approximated as in the paper on localisation (Tolias et al., 1511.05879, section 4): a sum of powers with the exponent
10 is near the maximum. A region of an R-MAC network is described by its maxima, as one of R-MAC's own regions. CroW's
weights and the centre prior of SPoC belong to the whole photo, and are left out.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dim.model.spec import Spec
from dim.model.whitening import Whitening

MAXIMUM = 10.0  # the exponent that stands for a maximum
_EPSILON = 1e-6  # as in `dim.model.layers`


@dataclass(frozen=True)
class NetworkHead:
    """The pooling and the linear layers of a network.

    A region with the activations X has the descriptor f = L2((Σ_p X(p)^power)^(1/power)) and then, for each (kernel,
    bias) of `layers`, f = L2(f · kernel + bias).
    """

    power: float
    layers: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    def descriptors(self, sums: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Makes descriptors, float32 (N, D), of sums of powers, float32 (N, K).

        The activations were divided by `scale` (K,) before, so that no power leaves the range of numbers.
        """
        found = normalised(np.power(sums, 1 / np.float32(self.power)) * scale)
        for kernel, bias in self.layers:
            found = normalised(found @ kernel + bias)
        return found


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Returns `vectors` (N, D), each divided by its length. A zero vector stays zero."""
    found: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _EPSILON)
    return found


def of_network(model: Any, spec: Spec, whitening: Whitening | None) -> NetworkHead:
    """The head of the Keras `model` that `spec` describes, and of the `whitening` after it, if there is one."""
    pooling = model.get_layer("pooling")
    layers = [pooling.get_weights()] if spec.region_dimension else []
    layers += [model.get_layer("pca").get_weights()] if spec.dimension is not None else []
    layers += [whitening.as_dense()] if whitening else []
    power = {"mac": MAXIMUM, "rmac": MAXIMUM}.get(spec.pooling, 1.0)
    if spec.pooling == "gem":
        power = float(np.asarray(pooling.get_weights()[0]))
    return NetworkHead(power, tuple((np.asarray(kernel), np.asarray(bias)) for kernel, bias in layers))
