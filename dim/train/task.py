"""What a training worker is handed, and where it begins. The driver needs no TensorFlow for it."""

import platform
from dataclasses import dataclass
from typing import Any

from ray.util.queue import Queue

from dim import cluster, telemetry
from dim.lease import Claim, under
from dim.model.spec import Source
from dim.train.config import TrainConfig
from dim.train.inputs import Inputs
from dim.train.photos import Photos
from dim.train.tracking import Tracking

# What the workers leave in the run's folder: the figures of each epoch, the photos that could not be read, and the
# trained model.
HISTORY, UNREADABLE, MODEL = "history.csv", "unreadable.csv", "model"


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


def train_worker(arguments: dict[str, Any]) -> dict[str, Any]:
    """Runs a worker's part of the job `arguments["job"]` and returns the figures of the run.

    What it can't do it raises: the other workers wait for this one, and Ray Train ends them only for what is raised.
    """
    from dim.train import loop  # noqa: PLC0415  (TensorFlow is for the workers)

    job: Job = arguments["job"]
    try:
        with telemetry.counting_for("train"), cluster.connected(), under(job.claims):
            return loop.run(job)
    except Exception as error:
        error.add_note(f"on {platform.node()}")  # Ray Train names the worker's rank only
        raise
