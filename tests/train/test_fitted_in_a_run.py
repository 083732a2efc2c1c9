"""What a run fits before its first step, R-MAC's regions and the PCA, and after its last, another whitening."""

import json
import shutil

import numpy as np
import pytest
from demo_set import map_of, photos_of

import dim.model
from dim.io import files
from dim.model import network, spec
from dim.model.pooling import region_vectors
from dim.train.config import TrainConfig
from dim.train.job import train
from dim.whiten.fit import fit_pca, moments_of

SMALL = {"model": "vgg16-rmac", "image_size": 64, "precision": "float32", "dimension": 32}
STEPS = {"epochs": 1, "top": 24, "batch_size": 8, "optimizer": "sgd", "learning_rate": 0.01}


def checkpoint_of(run, name="beginning"):
    with np.load(run / f"checkpoints/{name}.npz") as arrays:
        return [arrays[f"weight/{number}"] for number in range(sum(key.startswith("weight/") for key in arrays))]


@pytest.fixture(scope="module")
def run(ray_session, tmp_path_factory, scratch):
    """R-MAC trained with a learned whitening after it."""
    out = tmp_path_factory.mktemp("regions") / "run"
    return train(TrainConfig(out=str(out), scratch=scratch, final_whitening="learned", **SMALL, **STEPS)), out


@pytest.mark.slow
def test_regions_and_pca_are_fitted_in_turn_before_the_first_step(run):
    _, out = run
    _, images = photos_of("train")
    plain = network.load(spec.resolve("vgg16-rmac"))
    maps = np.asarray(network.part(plain, None, "block5_conv3")(images))
    regions = np.asarray(region_vectors(maps))
    kernel, bias = fit_pca(moments_of(regions.reshape(-1, 512)), None, {}, power=0.25).as_dense()
    whitened = regions @ kernel + bias
    pooled = (whitened / np.linalg.norm(whitened, axis=2, keepdims=True)).sum(axis=1)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    projection, shift = fit_pca(moments_of(pooled), 32, {}, power=0.25).as_dense()
    *_, found_kernel, found_bias, found_projection, found_shift = checkpoint_of(out)
    # Directions with close eigenvalues may turn into each other, which changes no product of two vectors.
    for found, expected in (
        (regions[0] @ found_kernel + found_bias, whitened[0]),
        (pooled @ found_projection + found_shift, pooled @ projection + shift),
    ):
        np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=2e-2 * np.square(expected).sum(1).max())


@pytest.mark.slow
def test_the_model_folder_gives_the_figures_and_says_how_it_was_trained(run):
    result, out = run
    model = dim.model.load(result["model"])
    assert map_of(model, "test") == pytest.approx(result["map_after"], abs=2e-3)
    assert map_of(model, "val") == pytest.approx(result["val_after"], abs=2e-3)
    document = files.read_json(str(out / "model/model.json"))
    assert document["region_dimension"] == 512
    assert document["training"]["configuration"]["power"] == 0.25
    assert (document["training"]["epochs"], document["training"]["dim"]) == (1, dim.__version__)
    kept = result["val_whitened"] > max(result["val_fitted"], float_of(out, "val_map"))
    assert (result["final_whitening"] == "learned") == kept
    whitening = document["whitening"]
    assert [step["kind"] for step in (*whitening.get("earlier", []), whitening)] == (
        ["pca", "learned"] if kept else ["pca"]
    )
    text = (out / "report.html").read_text()
    assert (
        f"learned, {'kept' if kept else 'not kept'}: mAP on split val with it is {result['val_whitened']:.4f}" in text
    )


def float_of(out, column):
    header, *_, last = (out / "history.csv").read_text().splitlines()
    return float(dict(zip(header.split(","), last.split(","), strict=True))[column])


@pytest.mark.slow
def test_a_resumed_run_may_ask_for_another_whitening_after_training(run, scratch, tmp_path):
    result, out = run
    shutil.copytree(out, tmp_path / "run")
    again = train(TrainConfig(out=str(tmp_path / "run"), scratch=scratch, final_whitening="learned", **SMALL, **STEPS))
    for name in ("map_before", "map_fitted", "map_after", "val_after", "val_whitened"):
        assert again[name] == pytest.approx(result[name], abs=1e-6)
    assert (again["best_epoch"], again["final_whitening"]) == (result["best_epoch"], result["final_whitening"])
    other = train(TrainConfig(out=str(tmp_path / "run"), scratch=scratch, final_whitening="none", **SMALL, **STEPS))
    assert (other["final_whitening"], other["val_whitened"]) == (None, None)
    assert "earlier" not in json.loads((tmp_path / "run/model/model.json").read_text())["whitening"]


@pytest.mark.slow
def test_two_workers_fit_what_one_fits(run, ray_session, scratch, tmp_path):
    result, out = run
    config = TrainConfig(out=str(tmp_path), scratch=scratch, final_whitening="learned", workers=2, **SMALL, **STEPS)
    other = train(config)
    for one, two in zip(checkpoint_of(out), checkpoint_of(tmp_path), strict=True):
        assert np.linalg.norm(one - two) <= 1e-3 * np.linalg.norm(one)
    for name in ("map_before", "map_fitted", "map_after", "val_whitened"):
        assert other[name] == pytest.approx(result[name], abs=1e-3)
    assert other["final_whitening"] == result["final_whitening"]
