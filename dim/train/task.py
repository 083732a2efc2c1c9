"""What a training worker is handed, and where it begins. The driver needs no TensorFlow for it."""

from dataclasses import dataclass
from typing import Any

from ray.util.queue import Queue

from dim.lease import Claim, under
from dim.model.spec import Source
from dim.train.config import TrainConfig
from dim.train.inputs import Inputs
from dim.train.photos import Photos
from dim.train.tracking import Tracking

# What the workers leave in the run's folder: its figures, those of each epoch, the photos that could not be read, and
# the trained model.
SUMMARY, HISTORY, UNREADABLE, MODEL = "training.json", "history.csv", "unreadable.csv", "model"


@dataclass(frozen=True)
class Job:
    """A run: `inputs` identify `photos` and `source`, `precision` is resolved, and with `fit_pca` the network has no
    fitted PCA layer yet. Log records go to `queue`, each epoch's figures to MLflow's `tracking` where there is one.
    Workers write while `claims` are held.
    """

    config: TrainConfig
    photos: Photos
    source: Source
    inputs: Inputs
    precision: str
    fit_pca: bool
    queue: Queue
    tracking: Tracking | None
    claims: tuple[Claim, ...]


def train_worker(arguments: dict[str, Any]) -> None:
    """Runs a worker's part of the job `arguments["job"]`."""
    from dim.train import loop  # noqa: PLC0415  (TensorFlow is for the workers)

    job: Job = arguments["job"]
    with under(job.claims):
        loop.run(job)
