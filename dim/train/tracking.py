"""A training run as an MLflow run: its settings, each epoch's figures as they come, and what it came to."""

import dataclasses
import importlib.util
import time
import typing
from dataclasses import dataclass
from typing import Any

from dim import files
from dim.errors import UserError
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
