"""The photos of a run decoded as an extraction decodes them: by Ray Data's tasks, on any node, ahead of the network.

Each worker makes its own data set. `ray.train.get_dataset_shard` would give it a part of one that the driver made, but
only the worker knows which photos it needs: those of its triplets that its node does not keep.
"""

from collections.abc import Generator, Sequence

import numpy as np
import pyarrow as pa

from dim.extract import pipeline, store
from dim.extract.pipeline import Change
from dim.train.photos import Photos

MEMORY = 0.5  # the part of the object store that all workers of a run may fill with photos


class Ingest:
    """Decodes `photos` for one of the run's `workers`, `step` of them in each task."""

    def __init__(self, photos: Photos, step: int, workers: int) -> None:
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
