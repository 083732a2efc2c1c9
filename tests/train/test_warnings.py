"""What a run says of the network that it keeps: it is never worse on split val than before the first step."""

import json
import logging

import pyarrow as pa
import pytest

from dim.io import tables
from dim.train.checkpoint import State, warnings
from dim.train.config import TrainConfig
from dim.train.job import DEMO, train

SMALL = {"image_size": 32, "precision": "float32", "dimension": 16, "top": 32, "batch_size": 16, "epochs": 1}


def said(val, *, kept, before=None, fitted=None, after=None):
    """The warnings of a run with these mAPs on split val, that of the fitted network first."""
    history = [{"epoch": epoch, "val_map": value} for epoch, value in enumerate(val[1:], start=1)]
    state = State(epoch=len(history), history=history, val_fitted=val[0], val_before=before, map_fitted=fitted)
    return list(warnings(TrainConfig(learning_rate=0.5), state, kept, "test", after))


def test_an_epoch_that_is_better_needs_no_words():
    assert said([0.5, 0.6, 0.4], kept=1, before=0.45, fitted=0.3, after=0.3) == []


def test_what_was_better_before_is_said():
    (line,) = said([0.5, 0.3, 0.4], kept=0, before=0.45)
    assert "no epoch was better than the fitted network on split val (mAP 0.5000, the best epoch 0.4000)" in line
    assert line.endswith("try a smaller --learning-rate than 0.5")
    (line,) = said([0.5, 0.6], kept=1, before=0.7)
    assert line.startswith(
        "'vgg16-gem' off the shelf is better on split val (mAP 0.7000) than the kept network (0.6000)"
    )
    (line,) = said([0.5, 0.6], kept=1, fitted=0.4, after=0.39)
    assert line.startswith("mAP on split test is 0.3900 after training and was 0.4000 with the fitted network")
    assert len(said([0.5, 0.3], kept=0, before=0.7)) == 2


def test_an_epoch_whose_better_is_lost_is_not_called_the_best():
    assert said([0.5, 0.6], kept=0) == []


def test_without_a_map_on_val_the_last_epoch_is_kept():
    (line,) = said([None, None, None], kept=2)
    assert line.endswith("the last epoch is kept")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return str(tmp_path_factory.mktemp("scratch"))


@pytest.fixture
def run(ray_session, tmp_path, scratch, caplog):
    """Trains on those of the demo photos that are in one of `splits`; the result and what was said."""

    def trained(splits, **options):
        rows = tables.read(str(DEMO)).to_pylist()
        chosen = [row | {"path": str(DEMO.parent / row["path"])} for row in rows if row["split"] in splits][::2]
        tables.write(str(tmp_path / "photos.csv"), pa.Table.from_pylist(chosen))
        settings = {"manifest": str(tmp_path / "photos.csv"), "out": str(tmp_path / "run"), "scratch": scratch}
        with caplog.at_level(logging.INFO, "dim"):
            result = train(TrainConfig(**(settings | SMALL | options)))
        return result, caplog.text

    return trained


def test_steps_that_destroy_the_network_leave_the_fitted_one(run, tmp_path):
    result, text = run(("train", "val"), learning_rate=0.05)
    assert (result["best_epoch"], result["judged_on"]) == (0, "val")
    assert result["map_after"] == pytest.approx(result["map_fitted"], abs=1e-3)
    history = tables.read(str(tmp_path / "run/history.csv")).to_pylist()
    assert float(history[0]["val_map"]) < result["val_after"] == result["val_fitted"]
    assert "no epoch was better than the fitted network" in result["warnings"][0] and result["warnings"][0] in text


def test_without_splits_to_judge_on_nothing_is_called_nan(run, tmp_path):
    result, text = run(("train",))
    assert [result[name] for name in ("map_before", "map_fitted", "map_after", "judged_on")] == [None] * 4
    assert result["best_epoch"] == 1
    assert "there is no split val" in result["warnings"][0] and "nan" not in text.lower()
    for name in ("run.json", "result.json", "checkpoints/epoch-0001.json"):
        json.loads((tmp_path / "run" / name).read_text(), parse_constant=pytest.fail)
    assert "nan" not in (tmp_path / "run/history.csv").read_text()
