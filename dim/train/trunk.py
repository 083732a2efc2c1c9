"""What training leaves as it is, photo by photo: from the cache, or computed and kept there."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from dim.extract import identity
from dim.train.photos import Augmentation, Photos, Variants, fetched_ahead
from dim.train.task import Job
from dim.train.trainee import Forward, Trainee
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

        It is drawn from `seed` and the photo's id, so that no division among workers and no other row changes it.
        """

        def variant(row: int) -> np.ndarray | None:
            pixels = self._photos.decode(row)
            own = int(hashlib.sha256(str(self._photos.image_ids[row]).encode()).hexdigest()[:32], 16)
            return None if pixels is None else augmentation.apply(pixels, np.random.default_rng([*seed, own]))

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


def trunk_of(job: Job, trainee: Trainee) -> Trunk:
    """What the run `job` leaves as it is, kept on its node's scratch disk."""
    config, spec = job.config, job.source.spec
    weights = (job.inputs.network["weights"], config.seed if job.source.weights == "random" else None)
    below = (spec.backbone, spec.preprocessing, spec.image_size, spec.resize)
    # The other cut lies below the layer that is pooled.
    pooled = (spec.layer, spec.pooling, spec.region_dimension) if trainee.cut == "l2" else None
    fingerprint = repr((weights, below, pooled, trainee.cut, job.precision, identity.SRGB))
    cache = TrunkCache(config.scratch, fingerprint, int(config.scratch_gigabytes * 1e9))
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    return Trunk(job.photos, cache, trainee.trunk, config.batch_size, threads)


def by_shape(arrays: dict[int, np.ndarray]) -> list[list[int]]:
    """The keys of `arrays`, those of equal shape together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, array in arrays.items():
        groups.setdefault(array.shape, []).append(row)
    return list(groups.values())
