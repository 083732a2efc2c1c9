"""A run in MLflow, in a store of files: its settings, its epochs, its end; resumed, it goes on in the same run."""

import pytest

from dim.train import history as run_history
from dim.train.config import TrainConfig

mlflow = pytest.importorskip("mlflow")


@pytest.mark.filterwarnings("ignore::FutureWarning:mlflow", "ignore::DeprecationWarning")
def test_a_run_is_found_in_mlflow(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri()
    config = TrainConfig(out=str(tmp_path / "run"), epochs=2, mlflow=uri)
    (tmp_path / "run").mkdir()
    epochs = [{"epoch": epoch, "loss": 1 / epoch, "val_map": None} for epoch in (1, 2)]
    run_history.tracked(uri, config).epoch(epochs[0])
    resumed = run_history.tracked(uri, config)
    resumed.epoch(epochs[1])
    resumed.finished({"map_before": 0.4, "map_after": 0.5, "judged_on": "test", "epochs": 2})

    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("dim").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "2" and run.data.params["margin"] == "0.1"
    assert (run.data.metrics["loss"], run.data.metrics["map_after"]) == (0.5, 0.5)
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5)]
