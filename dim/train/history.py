"""Writes records of a training run that people read: files in the run's folder, and an MLflow run.

- `history.csv` and `tensorboard/`: the figures of each epoch. With --mlflow, MLflow gets the figures, too.
- `hardest/epoch-001.parquet` and so on: the hardest triplets of each mining, with the columns of mine.py's output.
- `found_before.parquet`, `found_after.parquet`: the rankings of the queries before and after training, as
  `dim.train.embed.rankings` returns them. The queries are the photos of split test or, if it is empty, of split val.

`dim.report.training` makes the report from these files. A run resumes from its checkpoints and does not need them.
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

# Names in the run's folder: the table of figures, the list of photos that could not be read, the trained model.
HISTORY, UNREADABLE, MODEL = "history.csv", "unreadable.csv", "model"
EXPERIMENT = "dim"  # the name of the MLflow experiment
MLFLOW_RUN = "mlflow.json"  # file in the run's folder that names the MLflow run, so that a resumed run continues it
KEPT = 100  # number of hardest triplets that are written per epoch
BEFORE, AFTER = "before", "after"  # the moments of the rankings: before and after training


class EpochHistory:
    """Writes the figures of each epoch to the folder `run`. Only the worker of rank 0 has an `EpochHistory`."""

    def __init__(self, run: str, tracking: "Tracking | None" = None) -> None:
        self._run, self._tracking = run, tracking

    def write(self, epochs: list[dict[str, Any]]) -> None:
        """Writes all `epochs` (with equal keys) to history.csv, and the last epoch to MLflow and TensorBoard, too."""
        sheet = io.StringIO()
        writer = csv.DictWriter(sheet, fieldnames=list(epochs[-1]))
        writer.writeheader()
        writer.writerows(epochs)
        files.write_bytes(files.join(self._run, HISTORY), sheet.getvalue().encode())
        if self._tracking:
            self._tracking.epoch(epochs[-1])
        files.make_folder(files.join(self._run, "tensorboard"))
        # Each epoch has its own file. If an epoch is repeated after a crash, the new file replaces the old file.
        name = f"tensorboard/events.out.tfevents.{epochs[-1]['epoch']:010d}"
        files.write_bytes(files.join(self._run, name), _events(epochs[-1]))


def numbers(figures: dict[str, Any]) -> dict[str, float]:
    """The figures that are numbers. Missing values are left out, because trackers do not accept them."""
    return {name: value for name, value in figures.items() if isinstance(value, int | float)}


def _events(figures: dict[str, Any]) -> bytes:
    """The content of an event file with the figures of one epoch."""
    # SummaryWriter can only write to local paths. It writes in a thread, and only `close` waits for this thread.
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for name, value in numbers(figures).items():
                if name != "epoch":
                    writer.add_scalar(name, value, figures["epoch"])
        (file,) = Path(folder).iterdir()
        return file.read_bytes()


def keep_hardest(run: str, epoch: int, triplets: Triplets, image_ids: np.ndarray) -> None:
    """Writes the hardest triplets of `epoch` (from 1). `triplets` are positions in `image_ids`, hardest first."""
    files.make_folder(files.join(run, "hardest"))
    first = triplets.take(np.arange(min(KEPT, triplets.kept)))
    tables.write(files.join(run, f"hardest/epoch-{epoch:03}.parquet"), first.table(image_ids))


def hardest(run: str) -> dict[int, pa.Table]:
    """The tables that `keep_hardest` wrote: epoch → triplets, in ascending order of the epochs."""
    folder = files.join(run, "hardest")
    epochs = {
        int(number): name for name in files.names(folder) for number in re.findall(r"epoch-(\d+)\.parquet$", name)
    }
    found = storage.parallel_map(lambda epoch: tables.read(files.join(folder, epochs[epoch])), sorted(epochs))
    return dict(zip(sorted(epochs), found, strict=True))


def keep_found(run: str, moment: str, rankings: pa.Table) -> None:
    """Writes the `rankings` of the queries. `moment` is BEFORE or AFTER."""
    tables.write(files.join(run, f"found_{moment}.parquet"), rankings)


def found(run: str, moment: str) -> pa.Table:
    """The rankings of the queries at `moment`; an empty table if none were kept."""
    uri = files.join(run, f"found_{moment}.parquet")
    if files.exists(uri):
        return tables.read(uri)
    return pa.table({name: pa.array([]) for name in ("query_id", "ap", "found", "scores")})


@dataclass(frozen=True)
class Tracking:
    """The MLflow run `run_id` of the server or store at `uri`."""

    uri: str
    run_id: str

    def epoch(self, figures: dict[str, Any]) -> None:
        """Logs an epoch's figures."""
        self._log(figures, int(figures["epoch"]))

    def finished(self, summary: dict[str, Any]) -> None:
        """Logs the figures of the whole run, and closes it."""
        self._log(summary, int(summary["epochs"]))
        _client(self.uri).set_terminated(self.run_id)

    def _log(self, values: dict[str, Any], step: int) -> None:
        from mlflow.entities import Metric  # noqa: PLC0415

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in numbers(values).items()]
        _client(self.uri).log_batch(self.run_id, metrics=metrics)


def require_mlflow() -> None:
    """Raises UserError unless MLflow is installed."""
    if importlib.util.find_spec("mlflow") is None:
        raise UserError('--mlflow needs the package mlflow; install the extra: pip install ".[mlflow]"')


def tracked(uri: str, config: TrainConfig) -> Tracking:
    """The MLflow run of the training run in `config.out`. If there is none, it is created with the run's settings."""
    note = files.join(config.out, MLFLOW_RUN)
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
    from mlflow import MlflowClient  # noqa: PLC0415  (optional, and slow to import)

    return MlflowClient(uri)
