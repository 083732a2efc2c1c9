"""What a run learns from: the same photos in any order go on; what else they are, once an epoch is done, is refused."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dim.data import manifest as manifests
from dim.errors import UserError
from dim.extract import identity
from dim.io import files, tables
from dim.model import devices
from dim.model.spec import Source, Spec
from dim.train import job, training_set
from dim.train.config import TrainConfig

LABELS = ["a", "a", "b", "b", "c", "c"]
SPLITS = ["train"] * 4 + ["val"] * 2


class Place:
    """A folder with six photos, their table, weights, and a run."""

    def __init__(self, folder):
        self.folder = folder
        self.rows = [
            {"image_id": f"é{n}", "path": f"{n}.png", "label": label, "split": split, "note": n}
            for n, (label, split) in enumerate(zip(LABELS, SPLITS, strict=True))
        ]
        for number in range(8):
            Image.new("RGB", (32, 32), (number * 30, 80, 0)).save(folder / f"{number}.png")
            os.utime(folder / f"{number}.png", (1e9, 1e9))
        (folder / "other").write_bytes(b"no weights, but of their own sum")
        self.weights(b"weights")
        self.config = TrainConfig(manifest=str(folder / "photos.csv"), model="a network", out=str(folder / "run"))

    def weights(self, content):
        (self.folder / "w.npz").write_bytes(content)

    def inputs(self, **changes):
        tables.write(self.config.manifest, pa.Table.from_pylist(self.rows))
        manifest = manifests.read(self.config.manifest)
        source = Source(Spec(dimension=3), str(self.folder / "w.npz"), None)
        source = dataclasses.replace(source, spec=dataclasses.replace(source.spec, **changes))
        return training_set.of(manifest, identity.fingerprint_photos(manifest), source)

    def finishes(self, epoch):
        """What a worker leaves; of the checkpoint, all that is looked at is whether it is there."""
        (self.folder / "run/checkpoints").mkdir(parents=True, exist_ok=True)
        self.inputs().write(self.config.out)
        (self.folder / f"run/checkpoints/epoch-{epoch:04}.json").write_text("{}")


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def head(rows):
    rows[:0] = [{"image_id": f"new {n}", "path": f"{6 + n}.png", "label": "d", "split": "train"} for n in range(2)]


def relabel(rows):
    rows[0]["label"] = "b"


def swap(rows):
    rows[2], rows[3] = ({**rows[a], "image_id": rows[b]["image_id"]} for a, b in ((2, 3), (3, 2)))


CHANGES = {
    "photos at the head": (head, "2 rows added"),
    "a photo gone": (lambda rows: rows.pop(1), "1 row removed"),
    "a label corrected": (relabel, "1 row with another label"),
    "a label lost": (lambda rows: rows[0].update(label=None), "1 row with another label"),
    "another split": (lambda rows: rows[5].update(split="test"), "1 row in another split"),
    "no split": (lambda rows: rows[5].update(split=None), "1 row removed"),
    "another file": (lambda rows: rows[4].update(path="7.png"), "1 row with another photo or box"),
    "ids exchanged": (swap, "2 rows with another photo or box"),
    "several": (lambda rows: (relabel(rows), head(rows)), "2 rows added, 1 row with another label"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_table_that_changed_after_an_epoch_is_told_from_the_one_before(place, name):
    change, said = CHANGES[name]
    place.finishes(2)
    change(place.rows)
    changed = place.inputs().changed(place.config)
    assert changed == f"{place.config.manifest!r} has changed since {place.config.out!r} finished epoch 2: {said}"


def test_a_photo_changed_in_place_and_a_box_are_another_photo(place):
    for row in place.rows:
        row.update({"x1": 0, "y1": 0, "x2": 9, "y2": 9})
    place.finishes(1)
    os.utime(place.folder / "3.png", (2e9, 2e9))
    place.rows[0]["x1"] = 5
    assert place.inputs().changed(place.config).endswith("epoch 1: 2 rows with another photo or box")


SAME = {
    "nothing": len,
    "the order": lambda rows: rows.reverse(),
    "a column of the user's": lambda rows: rows[0].update(note=77),
    "a row without a split": lambda rows: rows.insert(
        0, {"image_id": "new", "path": "6.png", "label": "a", "split": None}
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_matter_to_the_run_may_change(place, name):
    place.finishes(2)
    SAME[name](place.rows)
    assert place.inputs().changed(place.config) is None


def test_before_the_first_epoch_is_done_all_may_change(place):
    place.finishes(1)
    (place.folder / "run/checkpoints/epoch-0001.json").rename(place.folder / "run/checkpoints/beginning.json")
    head(place.rows)
    assert place.inputs().changed(place.config) is None


def test_another_network_of_the_same_name_is_told(place):
    place.finishes(1)
    assert "a network' has changed" in place.inputs(pooling="mac").changed(place.config)
    assert place.inputs(dimension=2).changed(place.config).endswith("its dimension was 3 and is 2")
    place.weights(b"others")
    changed = place.inputs().changed(place.config)
    assert "its weights was '" in changed and files.read_json(f"{place.config.out}/checkpoints/network.json")


def test_a_run_of_an_earlier_dim_is_not_taken_on(place):
    place.finishes(1)
    for name in (training_set.PHOTOS, training_set.NETWORK):
        (place.folder / "run/checkpoints" / name).unlink()
    assert "an earlier dim wrote" in place.inputs().changed(place.config)


# The job itself, with a stand-in for Ray and the workers.


@pytest.fixture
def train(place, monkeypatch):
    """Trains on the demo photos, of which a copy of the table is used, for an epoch."""
    rows = tables.read(str(job.DEMO)).to_pylist()
    for row in rows:
        row["path"] = str(job.DEMO.parent / row["path"])
    place.rows = rows
    settings = {"manifest": place.config.manifest, "out": place.config.out, "image_size": 32, "precision": "float32"}

    def fit(config, _, task):
        if not files.names(f"{config.out}/checkpoints"):
            task.inputs.write(config.out)
            files.write_json(f"{config.out}/checkpoints/epoch-0001.json", {})
        return {"warnings": [], "verdict": "better"}

    monkeypatch.setattr(job, "_run_workers", fit)
    monkeypatch.setattr(job.training_report, "write", lambda *_: None)

    def run(**options):
        tables.write(place.config.manifest, pa.Table.from_pylist(place.rows))
        return job.train(TrainConfig(**(settings | options)))

    return run


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(folder).rglob("*") if path.is_file()}


def test_a_run_on_a_changed_table_is_refused_and_stays_as_it_is(ray_session, place, train):
    train()
    assert train()["model"] == f"{place.config.out}/model"
    before = contents(place.config.out)
    place.rows.insert(0, place.rows[0] | {"image_id": "new"})
    place.rows[1]["label"] = place.rows[-1]["label"]
    with pytest.raises(UserError, match=r"1 row added, 1 row with another label; give another --out$"):
        train()
    (Path(place.config.out) / "model").mkdir()
    (Path(place.config.out) / "model/model.json").write_text("{}")
    with pytest.raises(UserError, match=r"another --out, and --model \S+run/model to go on from its best network$"):
        train()
    shutil.rmtree(Path(place.config.out) / "model")
    assert contents(place.config.out) == before


def test_a_run_goes_on_in_the_precision_of_its_epochs(ray_session, place, train, monkeypatch):
    fitted, tasks = job._run_workers, []
    monkeypatch.setattr(job, "_run_workers", lambda *arguments: tasks.append(arguments[-1]) or fitted(*arguments))
    for best in ("bfloat16", "float32"):
        monkeypatch.setattr(devices, "best_precision", lambda _, best=best: best)
        train(precision="auto")
    assert [task.precision for task in tasks] == ["bfloat16", "bfloat16"]


def test_fewer_photos_than_dimensions_are_told_as_rows_and_not_as_shapes(ray_session, place, train):
    train(dimension=400)
    gone = [row for row in place.rows if row["split"] == "train"][1::2]
    place.rows = [row for row in place.rows if row not in gone]
    with pytest.raises(UserError, match=rf"{len(gone)} rows removed; give another --out"):
        train(dimension=400)


def test_fresh_views_and_triplets_belong_to_photos_wherever_their_rows_stand(ray_session, place):
    from dim.train.augmentation import Augmentation, FreshViews
    from dim.train.features import Ingest
    from dim.train.training_set import TrainingPhotos

    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place.folder / f"{number}.png")

    def views(order):
        ids = np.array([f"é{n}" for n in order], dtype=object)
        paths = [str(place.folder / f"{n}.png") for n in order]
        photos = TrainingPhotos(ids, ids, ids, paths, [None] * 3, ["ab"] * 3, 32, "squash")
        rows = photos.positions(np.array([["é0", "é2", "é1"]]))
        assert ids[rows].tolist() == [["é0", "é2", "é1"]]
        change = FreshViews(Augmentation(20, 0.3), (0, 1)).apply
        return [pixels.tobytes() for pixels in Ingest(photos, 2, 1).decoded(rows[0].tolist(), ids[rows[0]], change)]

    assert views([0, 1, 2]) == views([2, 0, 1])
