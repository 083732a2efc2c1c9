"""What training leaves as it is, photo by photo: from the cache, or computed and kept there."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dim.train.photos import Augmentation, Photos, Variants, fetched_ahead
from dim.train.trainee import Forward
from dim.train.trunk_cache import TrunkCache


class Trunk:
    """Reads photos' activations below the cut; `forward` computes them (None: nothing is frozen, they are pixels)."""

    def __init__(
        self, photos: Photos, cache: TrunkCache, forward: Forward | None, batch_size: int, threads: int
    ) -> None:
        self._photos, self._cache, self._forward, self._batch_size = photos, cache, forward, batch_size
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="photos")

    def read(
        self, lists: Iterable[Sequence[int]], variants: Variants | None = None, epoch: int = 0
    ) -> Iterator[dict[int, np.ndarray]]:
        """For each of `lists` of rows: the activations, float16 or uint8 pixels, of those that are readable; with
        `variants`, those of the variant that `epoch` has of each.
        """

        def key(row: int) -> str:
            photo = self._photos.keys[row]
            return variants.key(photo, epoch) if variants else photo

        def fetch(row: int) -> tuple[np.ndarray | None, bool]:
            kept = self._cache.get(key(row))
            if kept is not None:
                return np.array(kept), True
            pixels = self._photos.decode(row)
            return (variants.apply(pixels, key(row)) if variants and pixels is not None else pixels), False

        for fetched in fetched_ahead(lists, fetch, self._pool):
            found = {row: array for row, (array, kept) in fetched.items() if kept and array is not None}
            pixels = {row: array for row, (array, kept) in fetched.items() if not kept and array is not None}
            for row, activations in self._computed(pixels):
                self._cache.put(key(row), activations)
                found[row] = activations
            yield found

    def new_variants(
        self, lists: Iterable[Sequence[int]], augmentation: Augmentation, seed: Sequence[int]
    ) -> Iterator[dict[int, np.ndarray]]:
        """For each of `lists` of rows: a random variant of each readable photo, uint8 (H, W, 3).

        It is drawn from `seed` and the row, so that no division among workers changes it.
        """

        def variant(row: int) -> np.ndarray | None:
            pixels = self._photos.decode(row)
            return None if pixels is None else augmentation.apply(pixels, np.random.default_rng([*seed, row]))

        for fetched in fetched_ahead(lists, variant, self._pool):
            yield {row: pixels for row, pixels in fetched.items() if pixels is not None}

    def _computed(self, pixels: dict[int, np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        if self._forward is None:
            yield from pixels.items()
            return
        for rows in by_shape(pixels):
            for start in range(0, len(rows), self._batch_size):
                batch = rows[start : start + self._batch_size]
                yield from zip(batch, self._forward(np.stack([pixels[row] for row in batch])), strict=True)


def by_shape(arrays: dict[int, np.ndarray]) -> list[list[int]]:
    """The keys of `arrays`, those of equal shape together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, array in arrays.items():
        groups.setdefault(array.shape, []).append(row)
    return list(groups.values())
