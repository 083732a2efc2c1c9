"""The photos of a run decoded as an extraction decodes them: by Ray Data's tasks, on any node, ahead of the network.

Each worker makes its own data set. `ray.train.get_dataset_shard` would give it a part of one that the driver made, but
only the worker knows which photos it needs: those of its triplets that its node does not keep.

What training leaves as it is, photo by photo: from the cache, or computed and kept there.
"""

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import pyarrow as pa
import tensorflow as tf

from dim.app.progress import Progress
from dim.extract import identity, pipeline, store
from dim.extract.pipeline import Change
from dim.train.augmentation import NewVariants, TrainingPhotos, Variants
from dim.train.feature_cache import FeatureCache
from dim.train.step import TrainedNetwork
from dim.train.training_set import Job

MEMORY = 0.5  # the part of the object store that all workers of a run may fill with photos


class Ingest:
    """Decodes `photos` for one of the run's `workers`, `step` of them in each task."""

    def __init__(self, photos: TrainingPhotos, step: int, workers: int) -> None:
        self._photos, self._step, self._workers = photos, step, workers

    def decoded(
        self, rows: Sequence[int], names: Sequence[str], change: Change | None = None
    ) -> Generator[np.ndarray | str, None, None]:
        """For each of `rows`, in their order: its pixels, uint8 (H, W, 3), not to be written; or why it is unreadable.

        `change` is applied to the pixels, together with the row's name in `names`.
        """
        if not rows:
            return
        photos = self._photos
        columns = {
            "image_id": [str(photos.image_ids[row]) for row in rows],
            "path": [photos.paths[row] for row in rows],
            "box": pa.array([photos.boxes[row] for row in rows], pa.list_(pa.float64())),
            "content": list(names),
            "shard": [""] * len(rows),
        }
        dataset = pipeline.decoded(
            pa.table(columns),
            self._step,
            size=photos.image_size,
            resize=photos.resize,
            limits=photos.limits,
            change=change,
        )
        dataset.context.execution_options.preserve_order = True
        dataset.context.override_object_store_memory_limit_fraction = MEMORY / self._workers
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            images = iter(pipeline.images(table))
            for status, error in zip(table["status"].to_pylist(), table["error"].to_pylist(), strict=True):
                yield next(images) if status == store.OK else error


class Decoder(Protocol):
    """Decodes photos; see `dim.train.features.Ingest`."""

    def decoded(
        self, rows: Sequence[int], names: Sequence[str], change: Change | None = None
    ) -> Generator[np.ndarray | str, None, None]:
        """For each of `rows`: its pixels, or why it is unreadable."""


class Trunk:
    """Reads photos' activations below the cut; `forward` computes them (None: nothing is frozen, they are pixels).

    `unreadable`: row → why, of each photo that could not be read once; it is not tried again. `asked` and `computed`
    count the activations that were read, and those of them that were not in the cache.
    """

    def __init__(
        self,
        photos: TrainingPhotos,
        decoder: Decoder,
        cache: FeatureCache,
        forward: Callable[[np.ndarray], np.ndarray] | None,
        *,
        batch_size: int,
        threads: int,
    ) -> None:
        self._photos, self._decoder, self._cache = photos, decoder, cache
        self._forward, self._batch_size = forward, batch_size
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="photos")
        self.unreadable: dict[int, str] = {}
        self.asked = self.computed = 0

    def read(
        self, lists: Sequence[Sequence[int]], variants: Variants | None = None, epoch: int = 0
    ) -> Iterator[dict[int, np.ndarray]]:
        """For each of `lists` of rows: the activations, float16 or uint8 pixels, of those that are readable; with
        `variants`, those of the variant that `epoch` has of each.
        """
        change = variants.apply if variants else None
        keys = {row: self._photos.keys[row] for rows in lists for row in rows}
        if variants:
            keys = {row: variants.key(key, epoch) for row, key in keys.items()}
        kept = self._filled(keys, change)
        read = self._read_ahead([[row for row in rows if row in kept] for rows in lists], keys)
        new = self._computed([[row for row in rows if row not in kept] for rows in lists], keys, change)
        with contextlib.closing(new):
            for found, computed in zip(read, new, strict=True):
                lost = [row for row, activations in found.items() if activations is None]
                again = next(self._computed([lost], keys, change))  # cut short, or deleted by someone
                whole = {row: activations for row, activations in found.items() if activations is not None}
                self.asked += len(whole) + len(computed) + len(again)
                yield whole | computed | again

    def new_variants(self, lists: Sequence[Sequence[int]], variants: NewVariants) -> Iterator[dict[int, np.ndarray]]:
        """For each of `lists` of rows: a random variant of each readable photo, uint8 (H, W, 3)."""
        names = {row: str(self._photos.image_ids[row]) for rows in lists for row in rows}
        return self._pixels(lists, names, variants.apply)

    def _filled(self, keys: Mapping[int, str], change: Change | None) -> set[int]:
        """The rows whose activations are kept, once those that weren't have been computed, while there is room."""
        rows = list(keys)
        kept = set(itertools.compress(rows, self._pool.map(lambda row: self._cache.holds(keys[row]), rows)))
        missing = [row for row in rows if row not in kept and row not in self.unreadable]
        if not missing or self._cache.is_full():
            return kept
        progress = Progress("computing the frozen layers", len(missing), errors=True)
        lists = [missing[start : start + self._batch_size] for start in range(0, len(missing), self._batch_size)]
        with contextlib.closing(self._computed(lists, keys, change)) as computed:
            for asked, found in zip(lists, computed, strict=False):
                kept.update(row for row in found if self._cache.holds(keys[row]))
                progress.add(len(asked), errors=len(asked) - len(found))
                if self._cache.is_full():
                    break
        return kept

    def _read_ahead(
        self, lists: Sequence[Sequence[int]], keys: Mapping[int, str]
    ) -> Iterator[dict[int, np.ndarray | None]]:
        """For each of `lists`, what is kept; threads read the next while the caller works on one."""

        def get(row: int) -> np.ndarray | None:
            kept = self._cache.get(keys[row])
            return None if kept is None else np.array(kept)

        ahead: list[dict[int, Future[np.ndarray | None]]] = []
        for rows in lists:
            ahead.append({row: self._pool.submit(get, row) for row in rows})
            if len(ahead) > 1:
                yield {row: future.result() for row, future in ahead.pop(0).items()}
        for fetched in ahead:
            yield {row: future.result() for row, future in fetched.items()}

    def _computed(
        self, lists: Sequence[Sequence[int]], keys: Mapping[int, str], change: Change | None
    ) -> Generator[dict[int, np.ndarray], None, None]:
        """For each of `lists`, the activations of those that are readable, which are kept if there is room."""
        with contextlib.closing(self._pixels(lists, keys, change)) as decoded:
            for pixels in decoded:
                found = dict(self._through(pixels))
                for row, activations in found.items():
                    self._cache.put(keys[row], activations)
                self.computed += len(found)
                yield found

    def _pixels(
        self, lists: Sequence[Sequence[int]], names: Mapping[int, str], change: Change | None
    ) -> Generator[dict[int, np.ndarray], None, None]:
        wanted = [[row for row in rows if row not in self.unreadable] for rows in lists]
        order = [row for rows in wanted for row in rows]
        with contextlib.closing(self._decoder.decoded(order, [names[row] for row in order], change)) as decoded:
            for rows in wanted:
                outcomes = dict(zip(rows, decoded, strict=False))
                self.unreadable |= {row: reason for row, reason in outcomes.items() if isinstance(reason, str)}
                yield {row: pixels for row, pixels in outcomes.items() if not isinstance(pixels, str)}

    def _through(self, pixels: dict[int, np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        if self._forward is None:
            yield from pixels.items()
            return
        for rows in by_shape(pixels):
            for start in range(0, len(rows), self._batch_size):
                batch = rows[start : start + self._batch_size]
                yield from zip(batch, self._forward(np.stack([pixels[row] for row in batch])), strict=True)


def trunk_of(job: Job, trainee: TrainedNetwork, workers: int) -> Trunk:
    """What one of the `workers` of the run `job` leaves as it is, kept on its node's scratch disk."""
    config, spec = job.config, job.source.spec
    weights = (job.inputs.network["weights"], config.seed if job.source.weights == "random" else None)
    below = (spec.backbone, spec.preprocessing, spec.image_size, spec.resize)
    # The other cut lies below the layer that is pooled.
    pooled = (spec.layer, spec.pooling, spec.region_dimension) if trainee.cut == "l2" else None
    fingerprint = repr((weights, below, pooled, trainee.cut, job.precision, identity.SRGB))
    cache = FeatureCache(config.scratch, fingerprint, int(config.scratch_gigabytes * 1e9))
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    ingest = Ingest(job.photos, config.batch_size, workers)
    return Trunk(job.photos, ingest, cache, trainee.trunk, batch_size=config.batch_size, threads=threads)


def by_shape(arrays: dict[int, np.ndarray]) -> list[list[int]]:
    """The keys of `arrays`, those of equal shape together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, array in arrays.items():
        groups.setdefault(array.shape, []).append(row)
    return list(groups.values())
