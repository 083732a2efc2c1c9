"""The demo photos as arrays, and the mAP of a network on them, for tests of whole runs."""

from pathlib import Path

import numpy as np

from dim.data import manifest
from dim.data.decode import decode
from dim.search.exact import Part
from dim.train.embed import average_precisions
from dim.train.job import DEMO

SIDE = 64


def photos_of(split):
    """The manifest of `split`, and its photos with sides of SIDE pixels, uint8 (N, SIDE, SIDE, 3)."""
    chosen = manifest.read(str(DEMO)).select(split)
    return chosen, np.stack([decode(Path(path).read_bytes(), SIDE, "squash").pixels for path in chosen.paths])


def map_of(model, split):
    """The mAP of the Keras network `model` on `split`; NaN if a photo has no positive."""
    chosen, images = photos_of(split)
    vectors = np.concatenate([np.asarray(model(images[start : start + 16])) for start in range(0, len(images), 16)])
    return average_precisions([Part(0, len(vectors), lambda: vectors)], chosen.labels, chosen.image_ids).mean()
