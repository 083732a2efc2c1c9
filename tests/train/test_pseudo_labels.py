"""--labels groups: groups of a network's own descriptors, what they leave out, and a run on photos without labels."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest

from dim.data import manifest
from dim.errors import UserError
from dim.io import tables
from dim.search.database import parts_of
from dim.train import pseudo_labels
from dim.train.config import TrainConfig
from dim.train.job import DEMO, train
from dim.train.training_set import TrainingPhotos

OBJECTS, EACH, ALONE, DIMENSION = 12, 5, 8, 64


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def photos():
    """Descriptors and ids of photos of some objects, several of each, and of some that are alone; in mixed order."""
    generator = np.random.default_rng(4)
    objects = unit(generator.normal(size=(OBJECTS + ALONE, DIMENSION)))
    truth = np.append(np.repeat(np.arange(OBJECTS), EACH), OBJECTS + np.arange(ALONE))
    vectors = unit(objects[truth] + 0.06 * generator.normal(size=(len(truth), DIMENSION)))
    order = generator.permutation(len(truth))
    return vectors[order], truth[order], np.array([f"photo {row:03}" for row in range(len(truth))], dtype=object)


def found_in(vectors, ids):
    return pseudo_labels.found_in(SimpleNamespace(parts=parts_of(vectors)), ids, 100)


def test_groups_are_the_objects_and_photos_that_are_alone_have_labels_of_their_own(photos, in_threads):
    vectors, truth, ids = photos
    found = found_in(vectors, ids)
    label = dict(found.table.tolist())
    assert label.keys() == set(ids)
    for one in range(OBJECTS + ALONE):
        own = ids[truth == one].tolist()
        assert {label[image_id] for image_id in own} == {min(own)}
    similar = vectors @ vectors.T
    other = truth[:, None] != truth[None]
    np.fill_diagonal(similar, np.nan)
    within = np.nanmean(np.where(other, np.nan, similar)[truth < OBJECTS], axis=1)
    assert found.most_similar == pytest.approx(np.median(within), abs=1e-5)


def test_a_photo_that_is_nearer_to_another_group_is_in_doubt(photos, in_threads):
    vectors, truth, ids = photos
    centres = unit(np.stack([vectors[truth == one].mean(axis=0) for one in (0, 1)]))
    between = unit(centres.sum(axis=0))[None]  # of the object 0 and of the object 1
    near = unit(between + 0.02 * np.random.default_rng(0).normal(size=(1, DIMENSION)))
    found = found_in(np.concatenate([vectors, between, near]), np.append(ids, ["x", "y"]))
    label = dict(found.table.tolist())
    # Wherever the two are put, none of the others changes its group.
    assert {label[image_id] for image_id in ids[truth == 0]} != {label[image_id] for image_id in ids[truth == 1]}
    assert set(ids) <= label.keys()


def test_labels_of_groups_take_the_place_of_those_of_split_train():
    ids = np.array(["a", "b", "c", "d"], dtype=object)
    labels = np.array([None, None, None, "x"], dtype=object)
    splits = np.array(["train", "train", "train", "val"], dtype=object)
    photos = TrainingPhotos(ids, labels, splits, [], [], [], 32, "squash", grouped=True)
    assert photos.mined().tolist() == [0, 1, 2]
    assert photos.labelled(np.array([["c", "a"], ["a", "a"]])).tolist() == ["a", None, "a", "x"]
    assert photos.labelled(np.zeros((0, 2), np.str_)).tolist() == labels.tolist()


def test_a_single_photo_makes_no_groups(tmp_path):
    path = tmp_path / "one.csv"
    photo = next(DEMO.parent.glob("*/*.jpg"))
    path.write_text(f"image_id,path,label,split\na,{photo},,train\n")
    with pytest.raises(UserError, match="has 1 photos; groups need two"):
        train(TrainConfig(manifest=str(path), out=str(tmp_path / "run"), labels="groups", image_size=64))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["triplet", "ap"])
def test_a_run_without_labels_gains_on_objects_with_labels_and_resumes(ray_session, scratch, tmp_path, loss):
    known, columns = manifest.read(str(DEMO)), ["image_id", "path", "label", "split"]
    path = tmp_path / "photos.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row, place in zip(known.table.select(columns).to_pylist(), known.paths, strict=True):
            label = "" if row["split"] == "train" else row["label"]
            writer.writerow([row["image_id"], place, label, row["split"]])
    settings = {"image_size": 96, "precision": "float32", "dimension": 64, "top": 128, "batch_size": 32, "loss": loss}
    settings |= {"labels": "groups", "manifest": str(path), "scratch": scratch, "mine_every": 2}
    whole = train(TrainConfig(out=str(tmp_path / "whole"), epochs=2, **settings))
    assert whole["map_after"] > whole["map_before"]
    for epochs in (1, 2):  # the second epoch takes the groups from the checkpoint
        resumed = train(TrainConfig(out=str(tmp_path / "resumed"), epochs=epochs, **settings))
    assert resumed["val_after"] == pytest.approx(whole["val_after"], abs=1e-3)
    one, two = (tables.read(str(tmp_path / name / "history.csv")).to_pylist() for name in ("whole", "resumed"))
    assert [float(row["loss"]) for row in one] == pytest.approx([float(row["loss"]) for row in two], rel=1e-3)
