"""Two workers train as one does: whole runs on the demo photos, on the session's Ray."""

import csv
import json
import logging.handlers
from types import SimpleNamespace

import numpy as np
import pytest

from dim.train.config import TrainConfig
from dim.train.job import train

# Five steps of plain gradient descent, so that a difference in an update stays as it is.
FIVE_STEPS = {
    "optimizer": "sgd", "learning_rate": 0.01, "epochs": 1, "top": 40, "batch_size": 8,
    "schedule": "cosine", "warm_up": 0.2, "weight_decay": 0.001, "clip_norm": 0.1, "ema": 0.5,
}  # fmt: skip
SMALL = {"image_size": 64, "precision": "float32", "dimension": 32}


def weights(run):
    """The trained weights in the run's last checkpoint."""
    with np.load(sorted(run.glob("checkpoints/*.npz"))[-1]) as arrays:
        return {name: arrays[name] for name in arrays.files}


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


def started(scratch, ray_session, tmp_path_factory):
    """The weights before the first step: those of a run whose steps change nothing."""
    out = tmp_path_factory.mktemp("start")
    train(TrainConfig(out=str(out), scratch=scratch, **(FIVE_STEPS | {"learning_rate": 0.0}), **SMALL))
    return weights(out)


def test_updates_of_two_workers_equal_those_of_one(runs, ray_session, tmp_path_factory, scratch):
    before = started(scratch, ray_session, tmp_path_factory)
    # That both workers hold the same weights after the steps, the loop itself demands.
    one, two = (weights(out) for _, out, _ in runs.values())
    names = [name for name in before if name.startswith("weight/")]
    assert names
    for name in names:
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
