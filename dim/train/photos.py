"""The photos of a run as a worker reads them: decoded by threads, ahead of the network."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from PIL import Image

from dim.data import isolated, photos
from dim.data.limits import LIMITS, DecodeError, Limits
from dim.errors import JobFailed
from dim.model.vocabulary import Resize

T = TypeVar("T")

# A store is given up after about three minutes, and no photo within the limits takes one to decode.
STUCK_SECONDS = 600.0


@dataclass(frozen=True)
class Photos:
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

    def positions(self, image_ids: np.ndarray) -> np.ndarray:
        """The positions of the rows of `image_ids`, of any shape."""
        known, places = np.unique(image_ids, return_inverse=True)
        found = [self._position[image_id] for image_id in known.tolist()]
        return np.array(found, np.int64)[places.reshape(image_ids.shape)]

    @cached_property
    def _position(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.image_ids.tolist())}

    def decode(self, row: int) -> np.ndarray | None:
        """The photo at `row`, uint8 RGB (H, W, 3); None where it cannot be read."""
        try:
            content = photos.read(self.paths[row])
            return isolated.decode(content, self.image_size, self.resize, self.boxes[row], limits=self.limits).pixels
        except (DecodeError, OSError):
            return None


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


def fetched_ahead(
    lists: Iterable[Sequence[int]], fetch: Callable[[int], T], pool: ThreadPoolExecutor
) -> Iterator[dict[int, T]]:
    """For each of `lists` of rows, what `fetch` gives; `pool` fetches the next while the caller works on one.

    Raises JobFailed where one takes longer than STUCK_SECONDS.
    """
    ahead: dict[int, Future[T]] | None = None
    for rows in lists:
        now, ahead = ahead, {row: pool.submit(fetch, row) for row in rows}
        if now is not None:
            yield _arrived(now)
    if ahead is not None:
        yield _arrived(ahead)


def _arrived(fetched: dict[int, Future[T]]) -> dict[int, T]:
    found = {}
    for row, future in fetched.items():
        try:
            found[row] = future.result(timeout=STUCK_SECONDS)
        except FutureTimeout as error:
            raise JobFailed(
                f"row {row + 1} of the manifest took longer than {STUCK_SECONDS:.0f} s to read and decode; extract.py "
                "says which photos are stuck: take them out"
            ) from error
    return found
