"""Whole runs on the demo photos, on the session's Ray: two workers train as one does, and what a run leaves."""

import csv
import json
import logging.handlers
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from demo_set import map_of

import dim.model
from dim.errors import UserError
from dim.evaluate import metrics
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import evaluate
from dim.io import tables
from dim.train.config import TrainConfig
from dim.train.job import DEMO, train

# Five steps of plain gradient descent, so that a difference in an update stays as it is.
FIVE_STEPS = {
    "optimizer": "sgd", "learning_rate": 0.01, "epochs": 1, "top": 40, "batch_size": 8,
    "schedule": "cosine", "warm_up": 0.2, "weight_decay": 0.001, "clip_norm": 0.1, "ema": 0.5,
}  # fmt: skip
SMALL = {"image_size": 64, "precision": "float32", "dimension": 32}


def weights(run, checkpoint):
    """The trained weights in a checkpoint of the run."""
    with np.load(run / "checkpoints" / checkpoint) as arrays:
        return {name: arrays[name] for name in arrays.files if name.startswith("weight/")}


@pytest.fixture(scope="module")
def runs(ray_session, tmp_path_factory, scratch):
    """The same five steps by one worker and by two; the results, the folders, and what was said."""
    found = {}
    for workers in (1, 2):
        out, said = tmp_path_factory.mktemp(f"by{workers}"), logging.handlers.BufferingHandler(1000)
        logging.getLogger().addHandler(said)
        try:
            result = train(TrainConfig(out=str(out), workers=workers, scratch=scratch, **FIVE_STEPS, **SMALL))
        finally:
            logging.getLogger().removeHandler(said)
        found[workers] = (result, out, [record.getMessage() for record in said.buffer])
    return found


def test_updates_of_two_workers_equal_those_of_one(runs):
    before = weights(runs[1][1], "beginning.npz")
    # That both workers hold the same weights after the steps, the loop itself demands.
    one, two = (weights(out, "epoch-0001.npz") for _, out, _ in runs.values())
    assert before
    for name in before:
        update, other = one[name] - before[name], two[name] - before[name]
        # Each run fits the PCA layer anew, to descriptors that differ in their last digits.
        start = 5e-6 if before[name].shape[-1:] == (SMALL["dimension"],) else 1e-7
        assert np.linalg.norm(update) > 0
        assert np.linalg.norm(other - update) <= 1e-3 * np.linalg.norm(update) + start * np.linalg.norm(before[name])


def test_two_workers_report_the_figures_of_one(runs):
    (one, *_), (two, *_) = runs.values()
    for name in ("map_before", "map_fitted", "map_after"):
        assert two[name] == pytest.approx(one[name], abs=1e-4)


def test_a_run_leaves_what_it_promises(runs):
    result, out, _ = runs[2]
    assert result["workers"] == 2
    with (out / "history.csv").open() as file:
        (epoch,) = csv.DictReader(file)
    assert json.loads((out / "result.json").read_text())["best_epoch"] == result["best_epoch"]
    val = {None: result["val_before"], 0: result["val_fitted"], 1: float(epoch["val_map"])}
    returned = result["val_whitened"] if result["final_whitening"] else val[result["best_epoch"]]
    assert returned == pytest.approx(result["val_after"]) and returned >= max(val.values()) - 1e-6
    assert (epoch["steps"], epoch["kept"], epoch["workers"]) == ("5", "40", "2")
    assert 0 < float(epoch["active_share"]) <= 1
    assert list((out / "tensorboard").iterdir())
    assert {path.name for path in (out / "model").iterdir()} == {"model.json", "model.weights.h5"}


def test_model_folder_gives_the_map_that_was_reported(runs):
    result, *_ = runs[1]
    model = dim.model.load(result["model"])
    assert map_of(model, "test") == pytest.approx(result["map_after"], abs=2e-3)


@pytest.mark.slow
def test_unseen_objects_are_found_better_and_an_evaluation_says_the_same(runs, ray_session, tmp_path):
    result, *_ = runs[1]
    assert result["map_after"] > result["map_before"]
    models, size = (result["model"],), {name: SMALL[name] for name in ("image_size", "precision")}
    found = evaluate(EvaluateConfig(manifest=str(DEMO), model=models, split="test", out=str(tmp_path), **size))
    assert found["map"] == pytest.approx(result["map_after"], abs=2e-3)
    assert json.loads((tmp_path / "metrics.json").read_text())["map"] == found["map"]
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["job"], run["status"]) == ("evaluate", "done")


def test_the_report_shows_the_epochs_and_what_is_found_before_and_after(runs):
    result, out, _ = runs[1]
    text = (out / "report.html").read_text()
    for figure in ("map_before", "map_fitted", "map_after"):
        assert f"<strong>{result[figure]:.4f}</strong>" in text
    assert [int(epoch) for epoch in re.findall(r"<h3>Epoch (\d+)</h3>", text)] == [1]
    assert "Found better</h2>" in text
    before, after = (tables.read(str(out / f"found_{moment}.parquet")) for moment in ("before", "after"))
    assert metrics.mean(before["ap"].to_pylist()) == pytest.approx(result["map_before"])
    assert metrics.mean(after["ap"].to_pylist()) == pytest.approx(result["map_after"])


def test_another_setting_is_refused_for_the_same_folder(runs, tmp_path):
    _, out, _ = runs[1]
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    with pytest.raises(UserError, match=r"margin 0\.1, not 0\.2"):
        train(TrainConfig(out=str(copy), **FIVE_STEPS, **SMALL, margin=0.2))


def test_a_run_says_how_many_workers_train(runs):
    assert not [line for line in runs[1][2] if "workers train" in line]
    assert [line for line in runs[2][2] if "workers train" in line] == ["from epoch 1 on, 2 of 2 workers train"]


def test_fewer_workers_than_asked_for_are_said_to_be(caplog):
    from dim.train import loop

    config = TrainConfig(workers=3, epochs=5)
    with caplog.at_level(logging.INFO, "dim"):
        loop._log_workers(SimpleNamespace(job=SimpleNamespace(config=config), workers=2), 3)
    (line,) = caplog.messages
    assert line.startswith("from epoch 4 on, 2 of 3 workers train, as many as there is room for; when more nodes come")
