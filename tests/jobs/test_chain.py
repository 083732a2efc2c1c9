"""The way of the data on real photos: split → extract → mine. test_workers.py has train → evaluate."""

import pyarrow.parquet as pq
import pytest

from dim.data.config import SplitConfig
from dim.data.split import split
from dim.extract.config import ExtractConfig
from dim.extract.job import extract
from dim.mine.config import MineConfig
from dim.mine.job import mine_folder

SIZE = {"image_size": 64, "precision": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def manifest(folder, demo):
    path = str(folder / "photos.csv")
    split(SplitConfig(images=str(demo), out=path, val_labels=0.2, test_labels=0.4, seed=3))
    return path


@pytest.mark.slow
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
