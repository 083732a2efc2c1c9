"""A training run as an MLflow run: its settings, each epoch's figures as they come, and what it came to.

What each epoch came to: `history.csv` and TensorBoard events in the run's folder, on any storage, and MLflow.

What a run keeps for people to look at: the hardest triplets of each mining, and what queries find before and after.

`hardest/epoch-001.parquet` and so on are the heads of what mine.py writes; `found_before.parquet` and
`found_after.parquet` have, of the judged split, what `validate.rankings` returns.
"""

import csv
import dataclasses
import importlib.util
import io
import re
import tempfile
import time
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tensorboardX import SummaryWriter

from dim.errors import UserError
from dim.io import files, storage, tables
from dim.mine.triplets import Triplets
from dim.train.config import TrainConfig

if typing.TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "dim"
FILE = "mlflow.json"  # in the run's folder; a run that is resumed goes on in the same MLflow run


@dataclass(frozen=True)
class Tracking:
    """The MLflow run `run_id` of the server or store at `uri`."""

    uri: str
    run_id: str

    def epoch(self, figures: dict[str, Any]) -> None:
        """Logs an epoch's figures."""
        self._log(figures, int(figures["epoch"]))

    def finished(self, summary: dict[str, Any]) -> None:
        """Logs what the whole run came to, and closes it."""
        self._log(summary, int(summary["epochs"]))
        _client(self.uri).set_terminated(self.run_id)

    def _log(self, values: dict[str, Any], step: int) -> None:
        from mlflow.entities import Metric  # noqa: PLC0415

        now = int(time.time() * 1000)
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        metrics = [Metric(name, float(value), now, step) for name, value in numbers.items()]
        _client(self.uri).log_batch(self.run_id, metrics=metrics)


def require_mlflow() -> None:
    """Raises UserError unless MLflow is there."""
    if importlib.util.find_spec("mlflow") is None:
        raise UserError('--mlflow needs the package mlflow; install the extra: pip install ".[mlflow]"')


def begun(uri: str, config: TrainConfig) -> Tracking:
    """The MLflow run of the training run in `config.out`, which is made with its settings unless there is one."""
    note = files.join(config.out, FILE)
    if files.exists(note) and (known := files.read_json(note)).get("uri") == uri:
        return Tracking(uri, known["run_id"])
    from mlflow.entities import Param  # noqa: PLC0415

    client = _client(uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
    run_id = client.create_run(experiment, run_name=config.out).info.run_id
    settings = [Param(name, str(value)) for name, value in dataclasses.asdict(config).items()]
    client.log_batch(run_id, params=settings)
    files.write_json(note, {"uri": uri, "run_id": run_id})
    return Tracking(uri, run_id)


def _client(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient  # noqa: PLC0415  (it takes seconds, and few want it)

    return MlflowClient(uri)


# What the workers leave in the run's folder: the figures of each epoch, the photos that could not be read, and the
# trained model.
HISTORY, UNREADABLE, MODEL = "history.csv", "unreadable.csv", "model"


class EpochHistory:
    """Writes a run's epochs; only one worker holds one."""

    def __init__(self, run: str, tracking: Tracking | None = None) -> None:
        self._run, self._tracking = run, tracking

    def write(self, epochs: list[dict[str, Any]]) -> None:
        """Writes all `epochs` (one dictionary each, of the same keys) and adds the last to TensorBoard and MLflow."""
        sheet = io.StringIO()
        writer = csv.DictWriter(sheet, fieldnames=list(epochs[-1]))
        writer.writeheader()
        writer.writerows(epochs)
        files.write_bytes(files.join(self._run, HISTORY), sheet.getvalue().encode())
        if self._tracking:
            self._tracking.epoch(epochs[-1])
        files.make_folder(files.join(self._run, "tensorboard"))
        # A file for each epoch, so that one that is done again after a death takes the place of the first.
        name = f"tensorboard/events.out.tfevents.{epochs[-1]['epoch']:010d}"
        files.write_bytes(files.join(self._run, name), _events(epochs[-1]))


def _events(figures: dict[str, Any]) -> bytes:
    """A whole file of events: an epoch's figures."""
    # Events can be written to paths only; a thread writes them, and only `close` waits for it.
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for name, value in figures.items():
                if value is not None and name != "epoch":
                    writer.add_scalar(name, value, figures["epoch"])
        (file,) = Path(folder).iterdir()
        return file.read_bytes()


KEPT = 100  # triplets of an epoch
BEFORE, AFTER = "before", "after"


def keep_hardest(run: str, epoch: int, triplets: Triplets, image_ids: np.ndarray) -> None:
    """Writes the hardest of `triplets`, whose positions are those of `image_ids`, mined in `epoch` (from 1)."""
    files.make_folder(files.join(run, "hardest"))
    first = triplets.take(np.arange(min(KEPT, triplets.kept)))
    tables.write(files.join(run, f"hardest/epoch-{epoch:03}.parquet"), first.table(image_ids))


def hardest(run: str) -> dict[int, pa.Table]:
    """The hardest triplets by epoch, ascending."""
    folder = files.join(run, "hardest")
    epochs = {
        int(number): name for name in files.names(folder) for number in re.findall(r"epoch-(\d+)\.parquet$", name)
    }
    found = storage.parallel_map(lambda epoch: tables.read(files.join(folder, epochs[epoch])), sorted(epochs))
    return dict(zip(sorted(epochs), found, strict=True))


def keep_found(run: str, moment: str, rankings: pa.Table) -> None:
    """Writes what the queries find `BEFORE` or `AFTER` the training."""
    tables.write(files.join(run, f"found_{moment}.parquet"), rankings)


def found(run: str, moment: str) -> pa.Table:
    """What the queries found then; no row where it was not kept."""
    uri = files.join(run, f"found_{moment}.parquet")
    if files.exists(uri):
        return tables.read(uri)
    return pa.table({name: pa.array([]) for name in ("query_id", "ap", "found", "scores")})
