"""The photos of a run, and random variants of them.

The photos that a run leaves out because they cannot be read: which, and why.
"""

import hashlib
import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from PIL import Image

from dim.data.config import Resize
from dim.data.limits import LIMITS, Limits
from dim.errors import count_reasons
from dim.io import csv_files, files
from dim.train.history import UNREADABLE


@dataclass(frozen=True)
class TrainingPhotos:
    """The rows of a run: where each photo lies, its box, its label (None: none), split and id, and a key for
    what is kept of it.
    """

    image_ids: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    paths: list[str]
    boxes: list[tuple[float, float, float, float] | None]
    keys: list[str]
    image_size: int
    resize: Resize
    limits: Limits = LIMITS

    def rows(self, split: str) -> np.ndarray:
        """Positions of the rows of `split`, ascending."""
        return np.flatnonzero(self.splits == split)

    def used(self) -> np.ndarray:
        """Positions of the rows that have a split, ascending; a run has no use for the others."""
        return np.flatnonzero([split is not None for split in self.splits])

    def mined(self) -> np.ndarray:
        """Positions of the rows of split train that have a label, ascending: no triplet is made of the others."""
        return np.flatnonzero([label is not None for label in self.labels] & (self.splits == "train"))

    def positions(self, image_ids: np.ndarray) -> np.ndarray:
        """The positions of the rows of `image_ids`, of any shape."""
        known, places = np.unique(image_ids, return_inverse=True)
        found = [self._position[image_id] for image_id in known.tolist()]
        return np.array(found, np.int64)[places.reshape(image_ids.shape)]

    @cached_property
    def _position(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.image_ids.tolist())}


@dataclass(frozen=True)
class Augmentation:
    """Random rotation by up to `rotation` degrees, and a random crop that removes up to `crop` of each side."""

    rotation: float
    crop: float

    def apply(self, pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """A variant of uint8 RGB `pixels` (H, W, 3), of the same shape."""
        image = Image.fromarray(pixels)
        angle = generator.uniform(-self.rotation, self.rotation)
        image = image.rotate(angle, Image.Resampling.BILINEAR)
        shares = generator.uniform(0, self.crop, size=2)
        width, height = (side * (1 - share) for side, share in zip(image.size, shares, strict=True))
        left, top = generator.uniform(0, image.width - width), generator.uniform(0, image.height - height)
        box = (left, top, left + width, top + height)
        return np.asarray(image.resize(image.size, Image.Resampling.BILINEAR, box=box))


@dataclass(frozen=True)
class Variants:
    """`count` random variants of each photo, the same in every epoch, so that what is frozen of them can be kept."""

    augmentation: Augmentation
    count: int
    seed: int

    def key(self, photo: str, epoch: int) -> str:
        """What the variant that `epoch` has of the photo with the key `photo` is kept under."""
        number = np.random.default_rng([self.seed, epoch, int(photo, 16)]).integers(self.count)
        return hashlib.sha256(f"{photo} {self.augmentation} {self.seed} {number}".encode()).hexdigest()[:32]

    def apply(self, pixels: np.ndarray, key: str) -> np.ndarray:
        """The variant of `pixels` (H, W, 3) that is kept under `key`."""
        return self.augmentation.apply(pixels, np.random.default_rng(int(key, 16)))


@dataclass(frozen=True)
class NewVariants:
    """A random variant of each photo that no other `seed` has."""

    augmentation: Augmentation
    seed: tuple[int, ...]

    def apply(self, pixels: np.ndarray, image_id: str) -> np.ndarray:
        """The variant of `pixels` (H, W, 3). It is drawn from the seed and the photo's id, so that no division among
        workers and no other row changes it.
        """
        own = int(hashlib.sha256(image_id.encode()).hexdigest()[:32], 16)
        return self.augmentation.apply(pixels, np.random.default_rng([*self.seed, own]))


log = logging.getLogger(__name__)


def tell(run: str, photos: TrainingPhotos, reasons: dict[int, str]) -> None:
    """Says how many there are and why, by `reasons` (row → why), and lists them in the folder `run`."""
    where = files.join(run, UNREADABLE)
    files.delete(where)  # of a run that died before its first step
    if not reasons:
        return
    rows = sorted(reasons)
    columns = {
        "image_id": [photos.image_ids[row] for row in rows],
        "path": [photos.paths[row] for row in rows],
        "label": [photos.labels[row] for row in rows],
        "reason": [reasons[row] for row in rows],
    }
    csv_files.write_escaped(where, pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns])))
    log.warning(
        "photos that could not be read: %d (%s); they are left out; see %s",
        len(rows),
        count_reasons(columns["reason"]),
        where,
    )
