"""A run resumed is the run undisturbed, and a run ends when it can't go on or need not."""

import dataclasses

import numpy as np
import pytest

from dim.data import manifest
from dim.errors import JobFailed, UserError
from dim.io import tables
from dim.train.config import TrainConfig
from dim.train.job import DEMO, train

SMALL = {"image_size": 64, "precision": "float32", "dimension": 64, "top": 64, "batch_size": 16}


@pytest.mark.slow
def test_more_epochs_go_on_from_the_last(ray_session, scratch, tmp_path):
    settings = SMALL | {"rotation": 10.0}  # the random views must be the same, too
    whole, out = tmp_path / "whole", tmp_path / "run"
    result = train(TrainConfig(out=str(whole), scratch=scratch, epochs=2, **settings))
    train(TrainConfig(out=str(out), scratch=scratch, epochs=1, **settings))
    resumed = train(TrainConfig(out=str(out), scratch=scratch, epochs=2, **settings))
    assert resumed["epochs"] == 2
    for name in ("map_before", "map_fitted", "map_after"):
        assert resumed[name] == pytest.approx(result[name], abs=1e-3)
    assert (out / "history.csv").read_text().count("\n") == (whole / "history.csv").read_text().count("\n") == 3


EVERYTHING = {
    "schedule": "cosine", "warm_up": 0.25, "weight_decay": 0.01, "clip_norm": 1.0, "ema": 0.9, "learning_rate": 1e-3,
    "augment": True, "variants": 2,
}  # fmt: skip


def arrays_of(out, epoch):
    with np.load(out / "checkpoints" / f"epoch-000{epoch}.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.mark.slow
def test_a_run_that_was_cut_off_ends_with_the_weights_of_one_that_was_not(ray_session, scratch, tmp_path):
    """With a schedule, averages and stored views, which all depend on the step, the last steps or the epoch."""
    config = TrainConfig(out=str(tmp_path / "run"), scratch=scratch, epochs=2, **SMALL, **EVERYTHING)
    first = train(config)
    expected = arrays_of(tmp_path / "run", 2)
    for path in (tmp_path / "run" / "checkpoints").glob("epoch-0002.*"):
        path.unlink()
    result = train(config)
    found = arrays_of(tmp_path / "run", 2)
    assert len(found) > 20 and found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert result["val_after"] == first["val_after"]
    assert {path.name for path in (tmp_path / "run" / "hardest").iterdir()} == {
        "epoch-001.parquet",
        "epoch-002.parquet",
    }
    with pytest.raises(UserError, match="epochs 2, not 3"):  # the rate of the steps taken was planned for two epochs
        train(dataclasses.replace(config, epochs=3))


@pytest.mark.slow
def test_a_run_stops_that_no_longer_gains_and_says_so(ray_session, scratch, tmp_path):
    settings = SMALL | {"learning_rate": 0.0, "patience": 2, "epochs": 6}
    out = tmp_path / "run"
    result = train(TrainConfig(out=str(out), scratch=scratch, **settings))
    assert result["epochs"] == 2
    said = "; stopped after epoch 2 of 6: mAP on split val did not rise in the last 2 epochs"
    assert result["verdict"].endswith(said) and said[2:] in (out / "report.html").read_text()
    assert train(TrainConfig(out=str(out), scratch=scratch, **settings | {"patience": 3}))["epochs"] == 3


def test_patience_without_photos_to_judge_by_is_refused(tmp_path):
    table = manifest.read(str(DEMO)).select("train")
    path = tmp_path / "train.csv"
    rows = zip(table.image_ids, table.paths, table.labels, strict=True)
    path.write_text("image_id,path,label,split\n" + "".join(f"{i},{p},{label},train\n" for i, p, label in rows))
    with pytest.raises(UserError, match="--patience needs photos of split val"):
        train(TrainConfig(manifest=str(path), out=str(tmp_path / "run"), patience=1, image_size=64))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_with_step_and_ids(ray_session, scratch, tmp_path):
    settings = SMALL | {"learning_rate": 1e38, "optimizer": "sgd"}
    with pytest.raises(JobFailed, match=r"step \d+ of epoch 1; its 16 triplets are in .*\['.*--learning-rate"):
        train(TrainConfig(out=str(tmp_path / "run"), scratch=scratch, epochs=1, **settings))
    diverged = tables.read(str(tmp_path / "run" / "diverged.csv"))
    assert (diverged.num_rows, diverged.column_names) == (16, ["anchor_id", "positive_id", "negative_id"])


@pytest.mark.slow
def test_a_run_with_a_listwise_loss_resumes(ray_session, scratch, tmp_path):
    # A batch has more photos than a pass of the network.
    settings = {"image_size": 32, "precision": "float32", "dimension": 16, "top": 96, "batch_size": 48, "loss": "ap"}
    runs = {"whole": (2,), "resumed": (1, 2)}
    for name, ends in runs.items():
        for epochs in ends:
            result = train(TrainConfig(out=str(tmp_path / name), scratch=scratch, epochs=epochs, **settings))
        assert result["epochs"] == 2
    one, two = (tables.read(str(tmp_path / name / "history.csv")).to_pylist() for name in runs)
    for first, second in zip(one, two, strict=True):
        assert float(second["loss"]) == pytest.approx(float(first["loss"]), rel=1e-3)
        assert 0 < float(first["loss"]) < 1 and 0 < float(first["active_share"]) <= 1 and first["steps"] == "2"
    with pytest.raises(UserError, match="loss 'ap', not 'triplet'"):
        train(TrainConfig(out=str(tmp_path / "whole"), epochs=3, **settings | {"loss": "triplet"}))


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": 0}, {"power": 2.0}, {"ap_bins": 1}, {"workers": 9, "batch_size": 8}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match="--"):
        TrainConfig(**wrong)
