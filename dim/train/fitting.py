"""An epoch of gradient descent on mined triplets: the same steps on every worker, each with its share of a batch."""

import math
from typing import Any

import keras
import numpy as np

from dim.errors import JobFailed
from dim.progress import Progress
from dim.train import batches
from dim.train.batches import Share
from dim.train.config import TrainConfig
from dim.train.photos import Augmentation, Variants
from dim.train.step import Step, local_replicas, packed
from dim.train.task import Job
from dim.train.trainee import Trainee
from dim.train.trunk import Trunk


def from_pixels(config: TrainConfig) -> bool:
    """Whether each step begins with pixels: those of random variants that no other epoch has."""
    return _augmented(config) and not config.variants


def _augmented(config: TrainConfig) -> bool:
    return config.rotation > 0 or config.crop > 0


class Fitting:
    """Fits the network of worker `rank`."""

    def __init__(
        self, job: Job, trainee: Trainee, optimizer: keras.optimizers.Optimizer, trunk: Trunk, rank: int
    ) -> None:
        self._config, self._photos, self._trunk = job.config, job.photos, trunk
        self._replicas = trainee.strategy.num_replicas_in_sync
        local = local_replicas(trainee.strategy)
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
        plan = list(batches.epoch(triplets, self._config.batch_size, self._replicas, generator))
        own = [shares[self._own] for shares in plan]
        losses, active = [], 0
        progress = Progress(f"fitting epoch {epoch + 1}", sum(map(_size, plan)), "triplets")
        for number, (shares, mine, found) in enumerate(zip(plan, own, self._inputs(own, epoch), strict=True)):
            images = [packed([self._readable(found, row) for row in share.rows.tolist()]) for share in mine]
            loss, hard = self._step(images, [share.indices for share in mine], _size(shares))
            if not math.isfinite(loss):
                raise JobFailed(self._diverged(shares[0], epoch, number))
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
            return self._trunk.new_variants(lists, augmentation, (self._config.seed, epoch))
        return self._trunk.read(lists, Variants(augmentation, self._config.variants, self._config.seed), epoch)

    def _readable(self, found: dict[int, np.ndarray], row: int) -> np.ndarray:
        if row not in found:
            raise RuntimeError(f"photo {self._photos.image_ids[row]!r} was readable when it was mined and no longer is")
        return found[row]

    def _diverged(self, share: Share, epoch: int, number: int) -> str:
        ids = self._photos.image_ids[share.rows[share.indices[:, :3]]].T.tolist()
        return (
            f"the loss is not a number at step {number + 1} of epoch {epoch + 1}, whose first triplets are {ids}; "
            "lower --learning-rate, or try --precision float32"
        )


def _size(shares: list[Share]) -> int:
    return sum(share.indices.shape[1] for share in shares)
