"""Augmented views: random rotations and crops of the training photos.

Augmentation is off by default. `CachedViews` draws a fixed number of views per photo, so that the activations of the
frozen layers can be cached. `FreshViews` draws a new view of each photo in each epoch. Such views are not cached, so
each training step runs the whole network.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Augmentation:
    """Random rotation by up to `rotation` degrees, and a random crop by up to the share `crop` of width and height."""

    rotation: float
    crop: float

    def apply(self, pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Returns a random view of the uint8 RGB image `pixels` (H, W, 3), in the same shape."""
        image = Image.fromarray(pixels)
        angle = generator.uniform(-self.rotation, self.rotation)
        image = image.rotate(angle, Image.Resampling.BILINEAR)
        shares = generator.uniform(0, self.crop, size=2)
        width, height = (side * (1 - share) for side, share in zip(image.size, shares, strict=True))
        left, top = generator.uniform(0, image.width - width), generator.uniform(0, image.height - height)
        box = (left, top, left + width, top + height)
        return np.asarray(image.resize(image.size, Image.Resampling.BILINEAR, box=box))


@dataclass(frozen=True)
class CachedViews:
    """Gives each photo `count` augmented views, of which each epoch uses one. So the views' features can be cached."""

    augmentation: Augmentation
    count: int
    seed: int

    def key(self, photo: str, epoch: int) -> str:
        """The cache key of a photo's view in `epoch`. `photo` is the cache key of the photo itself."""
        number = np.random.default_rng([self.seed, epoch, int(photo, 16)]).integers(self.count)
        return hashlib.sha256(f"{photo} {self.augmentation} {self.seed} {number}".encode()).hexdigest()[:32]

    def apply(self, pixels: np.ndarray, key: str) -> np.ndarray:
        """The view of the photo `pixels` (H, W, 3) that has the cache key `key`."""
        return self.augmentation.apply(pixels, np.random.default_rng(int(key, 16)))


@dataclass(frozen=True)
class FreshViews:
    """Gives each photo a random view for one epoch. `seed` holds the run's seed and the number of the epoch."""

    augmentation: Augmentation
    seed: tuple[int, ...]

    def apply(self, pixels: np.ndarray, image_id: str) -> np.ndarray:
        """The view of the photo `pixels` (H, W, 3). Neither other photos nor the number of workers change it."""
        own = int(hashlib.sha256(image_id.encode()).hexdigest()[:32], 16)
        return self.augmentation.apply(pixels, np.random.default_rng([*self.seed, own]))
