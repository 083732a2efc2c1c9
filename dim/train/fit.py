"""An epoch of gradient descent on mined triplets: the same steps on every worker, each with its share of a batch."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
from ray.train import collective

from dim.app.progress import Progress
from dim.errors import JobFailed
from dim.io import csv_files, files
from dim.model.backend import keras
from dim.train import batches
from dim.train.augmentation import Augmentation, NewVariants, Variants
from dim.train.batches import Share
from dim.train.config import TrainConfig
from dim.train.features import Trunk
from dim.train.locality import Ownership
from dim.train.step import Step, TrainedNetwork, local_replicas, packed
from dim.train.training_set import Job

DIVERGED = "diverged.csv"  # within the run's folder: the triplets of the step whose loss was not a number
COLUMNS = ("anchor_id", "positive_id", "negative_id")


def from_pixels(config: TrainConfig) -> bool:
    """Whether each step begins with pixels: those of random variants that are new in each epoch."""
    return _augmented(config) and not config.variants


def _augmented(config: TrainConfig) -> bool:
    return config.rotation > 0 or config.crop > 0


class Fitting:
    """Fits the network of worker `rank`."""

    def __init__(
        self,
        job: Job,
        trainee: TrainedNetwork,
        optimizer: keras.optimizers.Optimizer,
        trunk: Trunk,
        *,
        rank: int,
        ownership: Ownership,
    ) -> None:
        self._config, self._photos, self._trunk = job.config, job.photos, trunk
        local = local_replicas(trainee.strategy)
        self._machines, self._owners = np.repeat(ownership.machines, local), ownership.owners
        self._own = slice(rank * local, (rank + 1) * local)
        self._step = Step(
            trainee.strategy,
            trainee.fitted,
            trainee.variables,
            optimizer,
            margin=job.config.margin,
            one_shape=job.source.spec.resize == "squash",
        )

    def fit(self, triplets: np.ndarray, epoch: int) -> dict[str, Any]:
        """Fits one epoch of `triplets` (T, 3), rows, and returns its figures. Raises JobFailed for a NaN loss."""
        generator = np.random.default_rng([self._config.seed, epoch])
        plan = list(
            batches.epoch(
                triplets,
                self._photos.labels,
                self._config.batch_size,
                machines=self._machines,
                owners=self._owners,
                generator=generator,
            )
        )
        own = [shares[self._own] for shares in plan]
        losses, active = [], 0
        progress = Progress("fitting", sum(map(_size, plan)), "triplets", epoch=epoch + 1)
        for number, (shares, mine, found) in enumerate(zip(plan, own, self._inputs(own, epoch), strict=True)):
            images = [packed([self._readable(found, row) for row in share.rows.tolist()]) for share in mine]
            loss, hard = self._step(images, [share.indices for share in mine], _size(shares))
            if not math.isfinite(loss):
                raise JobFailed(self._diverged(shares, epoch, number))
            losses.append(loss)
            active += hard
            progress.add(_size(shares))
        seen = sum(map(_size, plan))
        distinct = sum(len(share.rows) for shares in plan for share in shares)
        return {
            "loss": float(np.mean(losses)) if losses else 0.0,
            "active_share": active / seen if seen else 0.0,
            "steps": len(losses),
            "images_per_triplet": distinct / seen if seen else 0.0,
        }

    def _inputs(self, own: list[list[Share]], epoch: int) -> Any:
        lists = [np.unique(np.concatenate([share.rows for share in shares])).tolist() for shares in own]
        if not _augmented(self._config):
            return self._trunk.read(lists)
        augmentation = Augmentation(self._config.rotation, self._config.crop)
        if from_pixels(self._config):
            return self._trunk.new_variants(lists, NewVariants(augmentation, (self._config.seed, epoch)))
        return self._trunk.read(lists, Variants(augmentation, self._config.variants, self._config.seed), epoch)

    def _readable(self, found: dict[int, np.ndarray], row: int) -> np.ndarray:
        if row not in found:
            raise JobFailed(
                f"photo {self._photos.image_ids[row]!r} was readable when it was mined and no longer is: "
                f"{self._trunk.unreadable[row]}; mend {self._photos.paths[row]!r} and run the same command again"
            )
        return found[row]

    def _diverged(self, shares: list[Share], epoch: int, number: int) -> str:
        ids = np.concatenate([self._photos.image_ids[share.rows[share.indices]] for share in shares], axis=1)
        where = files.join(self._config.out, DIVERGED)
        if self._own.start == 0:  # worker 0 writes for all
            csv_files.write_escaped(where, pa.table(dict(zip(COLUMNS, ids.tolist(), strict=True))))
        collective.barrier()  # all of them fail, and worker 0 would be ended with the first
        return (
            f"the loss is not a number at step {number + 1} of epoch {epoch + 1}; its {ids.shape[1]} triplets are in "
            f"{where!r}, the first of them {ids[:, 0].tolist()}; lower --learning-rate, or try --precision float32, "
            "with another --out"
        )


def _size(shares: list[Share]) -> int:
    return sum(share.indices.shape[1] for share in shares)
