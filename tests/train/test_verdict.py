"""What a run says of the network that it returns: on split val, it is never worse than the network as it came."""

import html
import json
import logging
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from dim.io import tables
from dim.model import network, spec
from dim.train import verdict
from dim.train.checkpoint import State, mean_of
from dim.train.config import TrainConfig
from dim.train.job import DEMO, train, with_pca
from dim.train.training_set import Job
from dim.train.worker import Worker

SMALL = {"image_size": 32, "precision": "float32", "dimension": 16, "top": 32, "batch_size": 16, "epochs": 1}
LABELS = np.repeat(list("abcdefgh"), 5)
EARLIER = np.linspace(0.2, 0.9, 40)
NOISE = np.tile([0.1, -0.1], 20)


def judged(gain, *, epoch=2, labels=LABELS, before=EARLIER):
    """The verdict on a network whose AP of each query differs from that `before` by `gain`."""
    return verdict.judge(State(epoch=epoch, ap_before=before, ap=before + gain), labels, "off the shelf")


def said(found, *, val=(0.5, 0.6), train=1000, test=8, before=0.3, fitted=0.3, after=0.4, fit_pca=True, **flags):
    """The warnings of a run with the verdict `found` and these mAPs, on split val of the fitted network first."""
    history = [{"epoch": epoch, "val_map": value} for epoch, value in enumerate(val[1:], start=1)]
    state = State(epoch=len(history), history=history, val_fitted=val[0], map_before=before, map_fitted=fitted)
    photos = SimpleNamespace(
        rows=lambda _: range(test), mined=lambda: range(train), labels=np.array([str(row % 7) for row in range(train)])
    )
    job = SimpleNamespace(config=TrainConfig(learning_rate=0.5, **flags), photos=photos, fit_pca=fit_pca)
    return list(verdict.warnings(job, state, found, after))


def test_what_is_kept_is_never_worse_than_what_came():
    generator = np.random.default_rng(0)
    kept = set()
    for _ in range(50):
        before, after = generator.random((2, 40))
        before[:3], after[2:4] = np.nan, np.nan  # unreadable, or without a positive
        found = judged(after - before, before=before)
        returned = before if found.kept is None else after
        common = np.isfinite(before) & np.isfinite(after)
        assert mean_of(returned[common]) == max(mean_of(before[common]), mean_of(after[common]))
        assert found.interval[0] <= mean_of(returned[common]) <= found.interval[1]
        assert found.queries == 36
        kept.add(found.kept)
    assert kept == {None, 2}
    assert judged(0.0).kept is None  # training that changes nothing is no reason for another network


def test_a_gain_beyond_chance_is_called_better():
    found = judged(0.05 + NOISE)
    assert (found.kept, found.clear) == (2, True)
    line = found.line("run/model")
    assert line.startswith(
        "epoch 2 is better than off the shelf: mAP +0.0500 on 40 validation queries (95 % interval +0.0"
    )
    assert line.endswith("); 'run/model' holds it")
    assert judged(0.05, epoch=0).line("run/model").startswith("the fitted PCA is better than off the shelf: ")


def test_a_gain_that_may_be_chance_is_said_to_be():
    by_object = np.repeat([0.3, -0.2, 0.2, -0.1, 0.1, -0.2, 0.1, -0.1], 5)
    found = judged(by_object)
    assert (found.kept, found.clear) == (2, False)
    line = found.line("run/model")
    assert line.startswith(
        "epoch 2 may be better than off the shelf: mAP +0.0125 on 40 validation queries (95 % interval -"
    )
    few = judged(0.05, labels=np.repeat(list("abcd"), 10))
    assert "may be better" in few.line("m") and "(4 objects are too few for a 95 % interval)" in few.line("m")


def test_no_gain_is_advice_to_keep_what_came():
    line = judged(-0.05 + NOISE).line("run/model")
    assert line.startswith(
        "no better than off the shelf on 40 validation queries (epoch 2, the best: mAP -0.0500; 95 % interval -"
    )
    assert line.endswith("): keep that one, which 'run/model' holds")
    assert "(epoch 2, the best: mAP +0.0000; the AP of no query differs): keep" in judged(0.0).line("run/model")


def test_without_validation_queries_the_last_epoch_is_kept():
    found = judged(0.1, before=np.full(40, np.nan))
    assert (found.kept, found.change, found.interval) == (2, None, None)
    assert (
        found.line("run/model")
        == "not judged, because there are no validation queries; 'run/model' holds epoch 2, the last"
    )
    (line,) = said(found, val=(None, None, None))
    assert line.endswith("the last epoch is kept")


def test_a_whitening_after_training_is_kept_if_it_is_better_on_val():
    def whitened(gain):
        return verdict.Whitened("learned", {}, EARLIER + 0.05 + gain, EARLIER + 0.05)

    made = State(epoch=2, ap_before=EARLIER, ap=EARLIER + 0.05)
    better, equal = (verdict.judge(made, LABELS, "off the shelf", whitened(gain)) for gain in (0.02, 0.0))
    assert (better.whitening, equal.whitening) == ("learned", None)
    assert (mean_of(better.ap), mean_of(equal.ap)) == pytest.approx((0.62, 0.6))
    assert better.line("m").startswith(
        "epoch 2 with the learned whitening after training is better than off the shelf: mAP +0.0700 on 40 "
    )
    assert equal.line("m").startswith("epoch 2 is better than off the shelf: mAP +0.0500 on 40 ")
    assert whitened(0.02).line() == (
        "the learned whitening after training is kept: mAP on split val is 0.6200 with it and 0.6000 without"
    )
    assert whitened(0.0).line().startswith("the learned whitening after training is not kept: mAP on split val is ")
    worse = verdict.judge(State(epoch=2, ap_before=EARLIER, ap=EARLIER - 0.2), LABELS, "as it came", whitened(-0.1))
    assert (worse.kept, worse.whitening, mean_of(worse.ap)) == (None, None, mean_of(EARLIER))
    none = np.full(40, np.nan)
    unjudged = verdict.Whitened("pca", {}, none, none)
    assert not unjudged.kept and unjudged.line().endswith("is not kept: there are no validation queries to judge it by")


def test_an_epoch_that_is_better_needs_no_words():
    assert said(judged(0.05)) == []


def test_what_was_better_before_is_said():
    (line,) = said(judged(0.05, epoch=0), val=(0.5, 0.3, 0.4))
    assert line == (
        "no epoch was better on split val than the network before the first step; "
        "try a smaller --learning-rate than 0.5"
    )
    (line,) = said(judged(0.05), fitted=0.42, after=0.39)
    assert line == (
        "mAP on split test is 0.3900 after training and was 0.4200 with the fitted PCA: training did not help there"
    )
    (line,) = said(judged(0.05, epoch=0), before=0.45, fitted=0.39, after=0.39)
    assert line.startswith("mAP on split test is 0.3900 after training and was 0.4500 off the shelf")
    assert said(judged(-0.05), before=0.45, fitted=0.5, after=0.45) == []  # the verdict says it


def test_a_small_set_is_named_with_what_helps_unless_training_helped():
    small = {"train": 84, "before": 0.4, "fitted": 0.3, "after": 0.4}
    (line,) = said(judged(-0.05), **small)
    assert line == (
        "split train has 84 photos of 7 objects, too little to be sure that training helps; what helps: more photos of "
        "more objects; --train-layers pca, which changes the network less; no PCA, which is 'vgg16-gem' off the shelf"
    )
    for gain in (-0.05, 0.0):
        few = judged(gain, labels=np.repeat(list("abcde"), 8))
        (line,) = said(few, **small, fit_pca=False, train_layers="pca")
        assert line == (
            "split train has 84 photos of 7 objects and split val has 40 queries of 5 objects, too little to be sure "
            "that training helps; what helps: more photos of more objects; a larger share of them in val (split.py "
            "--val-labels)"
        )
    (line,) = said(judged(0.0, labels=np.repeat(range(8), 5)), **small)
    assert line.startswith("split train has 84 photos of 7 objects, too little")
    assert said(judged(0.05), train=84) == []  # better, beyond chance
    few = judged(0.05, labels=np.repeat(list("abcd"), 10))
    assert said(few, before=0.3, after=0.4) == []  # better on split test, which did not choose the epoch
    (line,) = said(few, test=0, before=0.3, after=0.4)
    assert line.startswith("split val has 40 queries of 4 objects, too little")


@pytest.fixture
def run(ray_session, tmp_path, scratch, caplog):
    """Trains on those of the demo photos that are in one of `splits`; the result and what was said."""

    def trained(splits, out="run", **options):
        rows = tables.read(str(DEMO)).to_pylist()
        chosen = [row | {"path": str(DEMO.parent / row["path"])} for row in rows if row["split"] in splits][::2]
        tables.write(str(tmp_path / "photos.csv"), pa.Table.from_pylist(chosen))
        settings = {"manifest": str(tmp_path / "photos.csv"), "out": str(tmp_path / out), "scratch": scratch}
        with caplog.at_level(logging.INFO, "dim"):
            result = train(TrainConfig(**(settings | SMALL | options)))
        return result, caplog.text

    return trained


@pytest.mark.slow
def test_a_run_whose_steps_destroy_the_network_returns_the_one_that_came(run, tmp_path):
    options = {"learning_rate": 0.05, "final_whitening": "none"}
    result, text = run(("train", "val"), **options)
    assert (result["best_epoch"], result["judged_on"]) == (None, "val")
    assert result["map_after"] == result["map_before"] == pytest.approx(result["val_after"])
    (epoch,) = tables.read(str(tmp_path / "run/history.csv")).to_pylist()
    assert result["val_after"] > max(result["val_fitted"], float(epoch["val_map"]))
    assert spec.read(result["model"]) == spec.resolve("vgg16-gem", image_size=32).spec
    before, after = (tables.read(str(tmp_path / f"run/found_{moment}.parquet")) for moment in ("before", "after"))
    assert after.equals(before)
    assert result["verdict"].startswith("no better than off the shelf on 20 validation queries (")
    report = html.unescape((tmp_path / "run/report.html").read_text())
    for line in (result["verdict"], *result["warnings"]):
        assert line in text and line in report

    # Another epoch does not change what came.
    longer, _ = run(("train", "val"), epochs=2, **options)
    assert (longer["epochs"], longer["best_epoch"], longer["model"]) == (2, None, result["model"])
    assert longer["map_after"] == result["map_before"]


def test_a_model_folder_that_is_returned_as_it_came_keeps_its_identity(tmp_path):
    config = TrainConfig(out=str(tmp_path / "run"))
    pca = {"dimension": 8, "whitening": {"kind": "pca", "power": 0.25, "learned_on": {}}}
    for name, came in (("without PCA", spec.Spec()), ("with PCA", spec.Spec(**pca))):
        network.save(network.build(came), came, str(tmp_path / name), {"epochs": 7})
        source = spec.resolve(str(tmp_path / name))
        begun = source if came.dimension else with_pca(source, config, 100)
        worker = SimpleNamespace(rank=0, job=Job(config, None, begun, None, "float32", source, None, None, ()))
        Worker.save_model(worker, None)
        returned = spec.resolve(str(tmp_path / "run/model"))
        assert (returned.spec, returned.fingerprint()) == (came, source.fingerprint())
        assert returned.training == {"epochs": 7}


def test_the_network_that_came_with_its_pca_is_not_one_that_the_run_made():
    state = State(history=[{"epoch": 1, "val_map": 0.4}, {"epoch": 2, "val_map": 0.3}], val_fitted=0.5)
    for fit_pca, expected in ((True, [0, 1, 2]), (False, [1, 2])):
        assert Worker._best_first(SimpleNamespace(job=SimpleNamespace(fit_pca=fit_pca)), state) == expected


@pytest.mark.slow
def test_without_splits_to_judge_on_nothing_is_called_nan(run, tmp_path):
    result, text = run(("train",))
    assert [result[name] for name in ("map_before", "map_fitted", "map_after", "judged_on")] == [None] * 4
    assert result["best_epoch"] == 1
    assert "there is no split val" in result["warnings"][0] and "nan" not in text.lower()
    for name in ("run.json", "result.json", "checkpoints/epoch-0001.json"):
        json.loads((tmp_path / "run" / name).read_text(), parse_constant=pytest.fail)
    assert "nan" not in (tmp_path / "run/history.csv").read_text()


def test_photos_without_labels_are_not_said_to_be_of_objects():
    lines = said(judged(0.0), train=84, test=0, labels="groups")
    (line,) = (line for line in lines if "split train has" in line)
    assert line.startswith("split train has 84 photos") and "84 photos of" not in line
