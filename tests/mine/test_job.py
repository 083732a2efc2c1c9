"""The job and its Ray tasks, from a manifest and descriptors to triplets.parquet."""

import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from dim.app.cluster import connected
from dim.errors import UserError
from dim.extract import store
from dim.extract.embedding import NetworkEmbedding
from dim.io import files, tables
from dim.mine import blocks, hardest, indexed, mining
from dim.mine.config import MineConfig, Mining
from dim.mine.mining import mine
from dim.mine.pool import BLOCK_ROWS
from dim.mine.remote import Remote, referring
from dim.search.exact import Part

EMBEDDING = NetworkEmbedding("vgg16", "block5_conv3", "gem", "0", "caffe", 224, "squash", (1.0,), None, None, "float32")


@pytest.fixture
def photos(tmp_path):
    """A manifest of 60 photos, 40 of them in split train, and their descriptors; one photo could not be read."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((60, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"photo {i}" for i in range(60)]
    labels = [None if i == 7 else f"label {i % 6}" for i in range(60)]
    splits = ["train" if i < 40 else "test" for i in range(60)]
    table = pa.table({"image_id": ids, "path": ids, "label": labels, "split": splits})
    tables.write(str(tmp_path / "photos.csv"), table)
    folder = tmp_path / "descriptors"
    folder.mkdir()
    files.write_json(str(folder / "run.json"), {"job": "extract", "embedding": EMBEDDING.as_json()})
    values = [None if i == 3 else row.tolist() for i, row in enumerate(vectors)]
    columns = {
        "image_id": ids,
        "descriptor": values,
        "status": [store.ERROR if value is None else store.OK for value in values],
        **{name: [None] * 60 for name in ("error", "width", "height", "content")},
    }
    store.write_shard(str(folder), "part-0", pa.table(columns, schema=store.schema(16)))
    return tmp_path, vectors, np.array(labels, dtype=object), np.array(ids, dtype=object)


def config_of(folder, **options):
    paths = {"manifest": "photos.csv", "descriptors": "descriptors", "out": "triplets"}
    return MineConfig(**{name: str(folder / path) for name, path in paths.items()}, **options)


def mined(data, settings, remote, block_rows=BLOCK_ROWS):
    vectors, labels, ids = data
    parts = [Part(0, len(vectors), referring(ray.put(vectors)))]
    return mine(parts, labels, ids, settings, remote=remote, share=2**20, block_rows=block_rows).whole()


@pytest.mark.parametrize("strategy", ["hardest", "distinct", "random"])
def test_tasks_find_what_one_process_finds(ray_session, photos, strategy):
    _, *data = photos
    settings = Mining(strategy=strategy, negatives_per_anchor=2, top=50)
    alone = mined(data, settings, Remote(1), 1000)
    for block_rows, remote in ((8, Remote()), (25, Remote(3, beside=True))):
        triplets = mined(data, settings, remote, block_rows)
        assert triplets.table(data[2]).equals(alone.table(data[2]))
        assert triplets.summary() == alone.summary()


@pytest.mark.parametrize("options", [{}, {"candidates": "Flat"}, {"strategy": "random"}])
def test_progress_counts_each_part_of_mining_once(ray_session, photos, monkeypatch, options):
    totals, done = [], []
    recorder = SimpleNamespace(add=done.append)
    monkeypatch.setattr(mining, "Progress", lambda _stage, total, _unit: totals.append(total) or recorder)
    mined(photos[1:], Mining(**options), Remote(8), 3)
    assert [sum(done)] == totals


def unreadable():
    raise UserError("the shard 'part-3' is not as it was written")


def test_a_part_that_cannot_be_loaded_is_an_error_of_the_user(ray_session, photos):
    _, vectors, labels, ids = photos
    parts = [Part(0, 30, referring(ray.put(vectors[:30]))), Part(30, 30, unreadable)]
    with pytest.raises(UserError, match=r"^the shard 'part-3' is not as it was written$"), connected():
        mine(parts, labels, ids, Mining(), remote=Remote(8), share=2**20, block_rows=8)


def dying_once(function, flag):
    """`function`, but the process of its first call is killed."""

    def dies(*arguments):
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    return dies


@pytest.mark.parametrize(
    ("module", "name"), [(blocks, "divided"), (hardest, "tile"), (hardest, "crossed"), (indexed, "proposals")]
)
def test_a_task_that_is_killed_is_repeated(ray_session, photos, monkeypatch, module, name):
    folder, *data = photos
    expected = mined(data, Mining(top=100), Remote(), 8)
    monkeypatch.setattr(module, name, dying_once(getattr(module, name), folder / "killed"))
    candidates = "Flat" if module is indexed else None
    triplets = mined(data, Mining(top=100, candidates=candidates), Remote(), 8)
    assert (folder / "killed").exists()
    assert triplets.table(data[2]).equals(expected.table(data[2]))


def test_job_writes_the_triplets_of_its_split(ray_session, photos):
    from dim.mine.job import mine_folder

    folder, *data = photos
    config = config_of(folder, top=100)
    result = mine_folder(config)
    rows = np.setdiff1d(np.arange(40), [3])
    expected = mined([values[rows] for values in data], config, Remote())
    assert pq.read_table(folder / "triplets" / "triplets.parquet").equals(expected.table(data[2][rows]))
    assert result == expected.summary() == json.loads((folder / "triplets" / "result.json").read_text())
    run = json.loads((folder / "triplets" / "run.json").read_text())
    assert run["embedding"]["id"] == EMBEDDING.id and run["status"] == "done"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "distinct", "negatives_per_anchor": 6}, "split 'train' of .*photos.csv' has 6 labels"),
        ({"split": "val"}, "no row with split 'val'"),
    ],
)
def test_wrong_input_is_refused_and_nothing_written(photos, options, message):
    from dim.mine.job import mine_folder

    folder, *_ = photos
    with pytest.raises(UserError, match=message):
        mine_folder(config_of(folder, **options))
    assert not (folder / "triplets").exists()
