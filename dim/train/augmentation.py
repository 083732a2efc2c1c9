"""Augmented views: random changes of the training photos, of their geometry, their colours and their sharpness.

Augmentation is off by default. `CachedViews` draws a fixed number of views per photo, so that the activations of the
frozen layers can be cached. `FreshViews` draws a new view of each photo in each epoch. Such views are not cached, so
each training step runs the whole network.
"""

import hashlib
import math
from dataclasses import dataclass, fields

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from dim.train.config import AugmentationOptions


@dataclass(frozen=True)
class Augmentation:
    """The ranges of the random changes. The defaults change nothing.

    Each view draws a part of the photo by area and aspect ratio (Szegedy et al., arXiv:1409.4842, section 6), then
    colours as in torchvision's ColorJitter. A view is never mirrored, because a mirrored object is another object.
    """

    rotation: float = 0.0  # largest angle, in degrees
    crop: float = 0.0  # largest share of the area that a crop removes
    aspect: float = 1.0  # largest factor by which the crop's ratio of width to height differs from the photo's
    perspective: float = 0.0  # largest share of its side by which a corner of the crop moves inwards
    brightness: float = 0.0  # the factors of brightness, contrast and saturation are from 1 − x to 1 + x
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # largest shift, as a share of the colour circle
    blur: float = 0.0  # largest standard deviation of the Gaussian, in pixels

    def apply(self, pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Returns a random view of the uint8 RGB image `pixels` (H, W, 3), in the same shape."""
        image = self._warped(Image.fromarray(pixels), generator)
        for enhancer, most in (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.saturation),
        ):
            factor = generator.uniform(1 - most, 1 + most)
            image = enhancer(image).enhance(factor) if most else image
        shift = generator.uniform(-self.hue, self.hue)
        image = hue_shifted(image, shift) if self.hue else image
        radius = generator.uniform(0, self.blur)
        return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)) if self.blur else image)

    def _warped(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """The photo rotated about its middle, cropped, and seen from aside: one transformation, one interpolation."""
        angle = math.radians(generator.uniform(-self.rotation, self.rotation))
        area = generator.uniform(1 - self.crop, 1)
        # Within these bounds, neither side of the crop is longer than the photo's.
        stretch = math.exp(
            generator.uniform(math.log(max(1 / self.aspect, area)), math.log(min(self.aspect, 1 / area)))
        )
        width, height = math.sqrt(area * stretch), math.sqrt(area / stretch)
        place = generator.uniform(size=2) * (1 - width, 1 - height)
        corners = _CORNERS + (1 - 2 * _CORNERS) * generator.uniform(0, self.perspective, (4, 2))
        corners = (corners * (width, height) + place) * image.size
        middle = np.array(image.size) / 2
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        corners = (corners - middle) @ turn.T + middle
        if np.allclose(corners, _CORNERS * image.size):
            return image
        data = perspective_from(_CORNERS * image.size, corners)
        return image.transform(image.size, Image.Transform.PERSPECTIVE, data, Image.Resampling.BILINEAR)


_CORNERS = np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)])  # of a photo whose sides are 1 long, as (x, y)

# The preset of `--augment`. Light and colour differ between photos of one object, but its own colour tells it from
# others, so the hue hardly changes.
PRESET = Augmentation(
    rotation=10.0, crop=0.5, aspect=4 / 3, perspective=0.1,
    brightness=0.3, contrast=0.3, saturation=0.3, hue=0.02, blur=1.0,
)  # fmt: skip


def augmentation_of(options: AugmentationOptions) -> Augmentation | None:
    """The augmentation that the flags ask for; None if they change nothing."""
    base = PRESET if options.augment else Augmentation()
    given = {field.name: getattr(options, field.name) for field in fields(Augmentation)}
    chosen = {name: getattr(base, name) if value is None else value for name, value in given.items()}
    return None if (found := Augmentation(**chosen)) == Augmentation() else found


def perspective_from(view: np.ndarray, photo: np.ndarray) -> list[float]:
    """The projective transformation that takes the four points `view` (4, 2) to the points `photo` (4, 2).

    Returns a, …, h as Pillow takes them: (x, y) ↦ ((ax + by + c) / (gx + hy + 1), (dx + ey + f) / (gx + hy + 1)). They
    solve eight linear equations (Hartley and Zisserman, Multiple View Geometry, section 4.1).
    """
    rows = []
    for (x, y), (u, v) in zip(view, photo, strict=True):
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
    coefficients: list[float] = np.linalg.solve(np.array(rows), photo.ravel()).tolist()
    return coefficients


def hue_shifted(image: Image.Image, shift: float) -> Image.Image:
    """The RGB `image` with its hues moved along the colour circle by the share `shift` of it."""
    hue, saturation, value = image.convert("HSV").split()
    moved = (np.asarray(hue).astype(np.int16) + round(shift * 256)) % 256
    return Image.merge("HSV", (Image.fromarray(moved.astype(np.uint8)), saturation, value)).convert("RGB")


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
