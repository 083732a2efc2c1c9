"""Reads the features of a run's photos from the feature cache, or computes them once and puts them there.

Features are the activations of the frozen layers, or the pixels if nothing is frozen. Ray Data tasks on any node decode
the photos, as in an extraction, before the network needs them. Each worker makes its own Ray data set. The driver
cannot make a common data set and divide it by `ray.train.get_dataset_shard`, as only the worker knows which photos its
machine has not cached.
"""

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import tensorflow as tf

from dim.app.progress import Progress
from dim.extract import embedder, photo_tables, pipeline, store
from dim.extract.embedding import SRGB
from dim.extract.photo_tables import Change
from dim.model import devices
from dim.train.augmentation import CachedViews, FreshViews
from dim.train.feature_cache import FeatureCache
from dim.train.step import TrainedNetwork
from dim.train.training_set import Job, TrainingPhotos

MEMORY = 0.5  # share of the object store that the decoded photos of all workers of a run may fill together


def features_of(job: Job, trained: TrainedNetwork, workers: int) -> "Features":
    """Makes the `Features` of `job` for one of the `workers`. The cache is on the scratch disk of this machine."""
    config, spec = job.config, job.source.spec
    weights = (job.inputs.network["weights"], config.seed if job.source.weights == "random" else None)
    below = (spec.backbone, spec.preprocessing, spec.image_size, spec.resize)
    # The trunk contains the pooling only if the layer l2 is the trunk's last layer.
    pooling = (spec.layer, spec.pooling) if trained.cut == "l2" else None
    fingerprint = repr((weights, below, pooling, trained.cut, job.precision, SRGB))
    cache = FeatureCache(config.scratch, fingerprint, int(config.scratch_gigabytes * 1e9))
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    batch_size = pass_size(job)
    ingest = Ingest(job.photos, batch_size, workers)
    return Features(job.photos, ingest, cache, trained.trunk, batch_size=batch_size, threads=threads)


def pass_size(job: Job) -> int:
    """The most photos of a pass of the network in inference. On a CPU, larger passes are slower."""
    fast = embedder.default_batch_size(job.source.spec.image_size, bool(devices.assigned_gpus()))
    return min(job.config.batch_size, fast)


class Features:
    """Reads the features of photos: activations at the cut (the last frozen layer), or pixels if nothing is frozen.

    Args:
        forward: The trunk: pixels (N, H, W, 3) → activations at the cut (N, …). None if nothing is frozen.
        batch_size: Number of photos per batch of the trunk.
        threads: Number of threads that read the cache.

    Attributes:
        unreadable: Row → the reason why the photo could not be read. Such a photo is not read again.
    """

    def __init__(
        self,
        photos: TrainingPhotos,
        decoder: "Ingest",
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
        self.read_count = self.computed_count = 0  # number of features read; number of features computed

    def read(
        self, lists: Sequence[Sequence[int]], views: CachedViews | None = None, epoch: int = 0
    ) -> Iterator[dict[int, np.ndarray]]:
        """The features of the readable photos of each list of rows or, with `views`, of the photos' views in `epoch`.

        Features that the cache lacks are computed first, until the cache is full. All others are computed list by list.

        Yields:
            For each list: row → activations (float16) or pixels (uint8).
        """
        change = views.apply if views else None
        keys = {row: self._photos.keys[row] for rows in lists for row in rows}
        if views:
            keys = {row: views.key(key, epoch) for row, key in keys.items()}
        cached = self._fill(keys, change)
        hits = self._read_ahead([[row for row in rows if row in cached] for rows in lists], keys)
        misses = self._compute([[row for row in rows if row not in cached] for rows in lists], keys, change)
        with contextlib.closing(misses):
            for found, computed in zip(hits, misses, strict=True):
                lost = [row for row, activations in found.items() if activations is None]  # file deleted or cut short
                again = next(self._compute([lost], keys, change))
                whole = {row: activations for row, activations in found.items() if activations is not None}
                self.read_count += len(whole) + len(computed) + len(again)
                yield whole | computed | again

    def fresh_views(self, lists: Sequence[Sequence[int]], views: FreshViews) -> Iterator[dict[int, np.ndarray]]:
        """Yields row → augmented view, uint8 (H, W, 3), for the readable photos of each list of rows."""
        names = {row: str(self._photos.image_ids[row]) for rows in lists for row in rows}
        return self._decode(lists, names, views.apply)

    def _fill(self, keys: Mapping[int, str], change: Change | None) -> set[int]:
        """Computes features that the cache lacks, until the cache is full. Returns the rows that are cached then."""
        rows = list(keys)
        cached = set(itertools.compress(rows, self._pool.map(lambda row: self._cache.holds(keys[row]), rows)))
        missing = [row for row in rows if row not in cached and row not in self.unreadable]
        if not missing or self._cache.is_full():
            return cached
        progress = Progress("computing the frozen layers", len(missing), errors=True)
        lists = [missing[start : start + self._batch_size] for start in range(0, len(missing), self._batch_size)]
        with contextlib.closing(self._compute(lists, keys, change)) as computed:
            for asked, found in zip(lists, computed, strict=False):
                cached.update(row for row in found if self._cache.holds(keys[row]))
                progress.add(len(asked), errors=len(asked) - len(found))
                if self._cache.is_full():
                    break
        return cached

    def _read_ahead(
        self, lists: Sequence[Sequence[int]], keys: Mapping[int, str]
    ) -> Iterator[dict[int, np.ndarray | None]]:
        """Yields the cached features of each list. Threads read the next list while the caller uses this one."""

        def get(row: int) -> np.ndarray | None:
            mapped = self._cache.get(keys[row])
            return None if mapped is None else np.array(mapped)

        ahead: list[dict[int, Future[np.ndarray | None]]] = []
        for rows in lists:
            ahead.append({row: self._pool.submit(get, row) for row in rows})
            if len(ahead) > 1:
                yield {row: future.result() for row, future in ahead.pop(0).items()}
        for fetched in ahead:
            yield {row: future.result() for row, future in fetched.items()}

    def _compute(
        self, lists: Sequence[Sequence[int]], keys: Mapping[int, str], change: Change | None
    ) -> Generator[dict[int, np.ndarray], None, None]:
        """Computes the features of the readable photos of each list, and puts them into the cache if it has room."""
        with contextlib.closing(self._decode(lists, keys, change)) as decoded:
            for pixels in decoded:
                found = dict(self._through_trunk(pixels))
                for row, activations in found.items():
                    self._cache.put(keys[row], activations)
                self.computed_count += len(found)
                yield found

    def _decode(
        self, lists: Sequence[Sequence[int]], names: Mapping[int, str], change: Change | None
    ) -> Generator[dict[int, np.ndarray], None, None]:
        wanted = [[row for row in rows if row not in self.unreadable] for rows in lists]
        order = [row for rows in wanted for row in rows]
        with contextlib.closing(self._decoder.decoded(order, [names[row] for row in order], change)) as decoded:
            for rows in wanted:
                outcomes = dict(zip(rows, decoded, strict=False))
                self.unreadable |= {row: reason for row, reason in outcomes.items() if isinstance(reason, str)}
                yield {row: pixels for row, pixels in outcomes.items() if not isinstance(pixels, str)}

    def _through_trunk(self, pixels: dict[int, np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        if self._forward is None:
            yield from pixels.items()
            return
        rows = list(pixels)
        for positions, batch in embedder.batches(list(pixels.values()), self._batch_size):
            yield from zip([rows[position] for position in positions], self._forward(batch), strict=True)


class Ingest:
    """Decodes `photos` for one of the run's `workers`. Each Ray Data task decodes `step` photos."""

    def __init__(self, photos: TrainingPhotos, step: int, workers: int) -> None:
        self._photos, self._step, self._workers = photos, step, workers

    def decoded(
        self, rows: Sequence[int], names: Sequence[str], change: Change | None = None
    ) -> Generator[np.ndarray | str, None, None]:
        """Decodes `rows` in their order.

        Args:
            names: The cache key or the image id of each row.
            change: Takes the pixels and the name of a row and returns augmented pixels. The decoding task calls it.

        Yields:
            For each row: its pixels, read-only uint8 (H, W, 3), or the reason why the photo is unreadable.
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
        table, size, resize = pa.table(columns), photos.image_size, photos.resize
        dataset = pipeline.decoded(
            table, self._step, size=size, resize=resize, limits=photos.limits, change=change, ordered=True
        )
        dataset.context.override_object_store_memory_limit_fraction = MEMORY / self._workers
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            images = iter(photo_tables.images(table))
            for status, error in zip(table["status"].to_pylist(), table["error"].to_pylist(), strict=True):
                yield next(images) if status == store.OK else error
