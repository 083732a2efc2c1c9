"""The whole way of the data on real photos: split → extract → whiten → mine → train → extract → evaluate."""

import json

import pyarrow.parquet as pq
import pytest

from dim.data.config import SplitConfig
from dim.data.split import split
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import evaluate
from dim.extract.config import ExtractConfig
from dim.extract.job import extract
from dim.mine.config import MineConfig
from dim.mine.job import mine_folder
from dim.train.config import TrainConfig
from dim.train.job import train

SIZE = {"image_size": 64, "precision": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def manifest(folder, demo):
    path = str(folder / "photos.csv")
    split(SplitConfig(images=str(demo), out=path, val_labels=0.2, test_labels=0.4, seed=3))
    return path


@pytest.fixture(scope="module")
def trained(ray_session, folder, manifest):
    scratch = str(folder / "scratch")
    return train(
        TrainConfig(
            manifest=manifest, out=str(folder / "run"), epochs=1, top=320, scratch=scratch, dimension=64, **SIZE
        )
    )


def test_mined_triplets_are_those_of_the_labels(ray_session, folder, manifest):
    out = str(folder / "off-the-shelf")
    done = extract(ExtractConfig(manifest=manifest, model="vgg16-gem", split="train", out=out, **SIZE))
    assert done["errors"] == 0
    mined = mine_folder(MineConfig(manifest=manifest, descriptors=out, out=str(folder / "triplets"), top=100))
    table = pq.read_table(folder / "triplets" / "triplets.parquet").to_pydict()
    assert mined["kept"] == len(table["rank"]) == 100
    assert table["loss"] == sorted(table["loss"], reverse=True)
    for anchor, positive, negative in zip(
        *(table[f"{side}_id"] for side in ("anchor", "positive", "negative")), strict=True
    ):
        assert anchor.split("/")[0] == positive.split("/")[0] != negative.split("/")[0]
        assert anchor != positive


def test_training_finds_unseen_objects_better(trained):
    assert trained["map_after"] > trained["map_fitted"]
    assert trained["map_after"] > trained["map_before"]


def test_the_trained_model_is_measured_as_the_run_said(trained, ray_session, folder, manifest):
    out = str(folder / "metrics")
    models = (trained["model"], "vgg16-gem")
    metrics = evaluate(EvaluateConfig(manifest=manifest, model=models, split="test", out=out, **SIZE))
    assert metrics["map"] == pytest.approx(trained["map_after"], abs=2e-3)
    assert metrics["compared"][1]["map"] == pytest.approx(trained["map_before"], abs=2e-3)
    assert json.loads((folder / "metrics" / "metrics.json").read_text())["map"] == metrics["map"]
    run = json.loads((folder / "metrics" / "run.json").read_text())
    assert (run["job"], run["status"]) == ("evaluate", "done")
