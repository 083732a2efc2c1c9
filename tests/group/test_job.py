"""Runs of group.py: its files, later runs in the same folder, corrections, an index, and what mining makes of them."""

import dataclasses

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from marks import slow
from PIL import Image

from dim.app import tasks
from dim.data import manifest as manifests
from dim.errors import UserError
from dim.group.config import GroupConfig
from dim.group.job import group
from dim.io import tables
from dim.mine.config import MineConfig
from dim.mine.job import mine_folder
from dim.search.build_index import build
from dim.search.config import IndexConfig

FILES = ("groups.parquet", "manifest.csv", "duplicates.csv", "curve.csv")


@pytest.fixture
def place(tmp_path, write_manifest, write_descriptors, pile):
    """A pile whose photos exist; of the first photo there is an identical file and a smaller copy."""
    vectors, truth = pile(0, noise=0.05, objects=12)
    vectors = np.concatenate([vectors, vectors[:1], vectors[:1] + 0.01]).astype(np.float32)
    ids = [f"photo {number:02d}" for number in range(len(truth))] + ["zz identical", "zz smaller"]
    generator = np.random.default_rng(0)
    for image_id in ids[:-2]:
        pixels = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{image_id}.png")
    (tmp_path / "zz identical.png").write_bytes((tmp_path / f"{ids[0]}.png").read_bytes())
    Image.open(tmp_path / f"{ids[0]}.png").resize((32, 24)).save(tmp_path / "zz smaller.png")
    labels = [f"object {label}" for label in [*truth, truth[0], truth[0]]]
    manifest = write_manifest(image_id=ids, label=labels, path=[f"{image_id}.png" for image_id in ids])
    folder = write_descriptors(ids, vectors, errors=[ids[5]])
    return GroupConfig(manifest=manifest, descriptors=folder, out=str(tmp_path / "out"), copies=0.99)


def files_of(config):
    return {name: (pd.read_csv if name.endswith("csv") else pd.read_parquet)(f"{config.out}/{name}") for name in FILES}


def same_files(one, other):
    return all(files_of(one)[name].equals(files_of(other)[name]) for name in FILES)


def test_files(place):
    result = group(place)
    found = files_of(place)
    objects = found["groups.parquet"].query("level == 'object'").set_index("image_id")
    truth = found["manifest.csv"].set_index("image_id")
    assert result["images"] == len(objects) == len(truth) - 1
    assert result["errors"] == 1
    named = objects["group"].dropna()
    for name, members in named.groupby(named):
        assert name == min(members.index)
        assert truth.loc[members.index, "given_label"].nunique() == 1
        assert objects.loc[members.index, "medoid"].sum() == 1
        assert (objects.loc[members.index, "size"] == len(members)).all()
    assert result["groups"] == named.nunique() == truth.loc[named.index, "given_label"].nunique()
    labelled = truth["label"].dropna()
    assert (labelled[named.index] == named).all()
    alone = objects.index[objects["group"].isna()]
    assert (labelled[alone] == alone).all()


def test_copies_are_listed_and_nothing_is_deleted(place, tmp_path):
    result = group(place)
    found = files_of(place)["duplicates.csv"]
    assert found[["keep", "delete"]].to_numpy().tolist() == [["photo 00", "zz identical"], ["photo 00", "zz smaller"]]
    assert found["why"].tolist() == ["the files are identical", "32 × 24 pixels, not 64 × 48"]
    assert found["delete_path"].tolist() == [str(tmp_path / "zz identical.png"), str(tmp_path / "zz smaller.png")]
    assert (result["copies"], result["identical"]) == (2, 1)
    assert (tmp_path / "zz identical.png").exists()


@pytest.mark.parametrize("changes", [{"workers": 3, "memory": "256MiB"}, *slow({"workers": 1})])
def test_workers_and_memory_make_no_difference(place, tmp_path, changes, monkeypatch):
    result = group(place)
    monkeypatch.setattr("dim.group.components.UNIT_ROWS", 5)
    again = dataclasses.replace(place, out=str(tmp_path / "again"), **changes)
    assert group(again) == result
    assert same_files(place, again)


def test_tasks_of_ray_find_what_threads_find(ray_session, place, tmp_path, monkeypatch):
    monkeypatch.setattr("dim.group.components.UNIT_ROWS", 5)
    result = group(place)
    monkeypatch.setattr(tasks, "_by_tasks", tasks._by_threads)
    again = dataclasses.replace(place, out=str(tmp_path / "again"))
    assert group(again) == result
    assert same_files(place, again)


@pytest.mark.parametrize("step", ["added", *slow("removed", "changed")])
def test_a_later_run_equals_one_on_all(pile, tmp_path, write_manifest, write_descriptors, step):
    vectors, _ = pile(7, noise=0.1, objects=12)
    ids = np.array([f"photo {number:03d}" for number in range(len(vectors))])
    generator = np.random.default_rng(0)
    before, after = np.arange(len(ids)), generator.permutation(len(ids))
    changed = vectors.copy()
    if step == "added":
        before = np.sort(generator.permutation(len(ids))[: 3 * len(ids) // 4])
    elif step == "removed":
        after = after[: 3 * len(ids) // 4]
    else:
        changed[::5] = changed[::-5][: len(changed[::5])]
    out = str(tmp_path / "kept")
    old = write_manifest("old.csv", image_id=ids[before].tolist())
    group(GroupConfig(manifest=old, descriptors=write_descriptors(ids[before], vectors[before], name="old"), out=out))
    new = write_manifest("new.csv", image_id=ids[after].tolist())
    folder = write_descriptors(ids[after], changed[after], name="new")
    whole = GroupConfig(manifest=new, descriptors=folder, out=str(tmp_path / "whole"))
    later = dataclasses.replace(whole, out=out)
    expected = group(whole)
    assert group(later) == expected
    assert same_files(later, whole)
    one, other = (pq.read_table(f"{folder}/neighbours.parquet") for folder in (out, whole.out))
    assert one.equals(other)


def test_nothing_is_searched_again(place, monkeypatch):
    result = group(place)
    monkeypatch.setattr("dim.search.exact.nearest", None)
    assert group(place) == result


def test_corrections_can_be_taken_back(place, tmp_path):
    result = group(place)
    objects = files_of(place)["groups.parquet"].query("level == 'object'")
    several = objects.dropna(subset="group")
    pair = several[several["group"] == several["group"].iloc[0]]["image_id"].tolist()[:2]
    alone = objects[objects["group"].isna()]["image_id"].tolist()[:2]
    given = pa.table({"image_id": [pair[0], alone[0]], "other_id": [pair[1], alone[1]],
                      "kind": ["cannot-link", "must-link"]})  # fmt: skip
    tables.write(str(tmp_path / "corrections.csv"), given)
    group(dataclasses.replace(place, corrections=str(tmp_path / "corrections.csv")))
    labels = files_of(place)["manifest.csv"].set_index("image_id")["label"]
    assert labels[pair[0]] != labels[pair[1]]
    assert labels[alone[0]] == labels[alone[1]]
    assert group(place) == result


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("photo 00", "nobody", "must-link")], "1 corrections are on photos that are not grouped, the first 'nobody'"),
        ([("photo 00", "photo 01", "same")], "unknown kind 'same'; use must-link or cannot-link"),
        (
            [
                ("photo 00", "photo 01", "must-link"),
                ("photo 01", "photo 02", "must-link"),
                ("photo 02", "photo 00", "cannot-link"),
            ],
            "'photo 02' and 'photo 00' are cannot-link, but corrections of kind must-link connect them",
        ),
    ],
)
def test_wrong_corrections(place, tmp_path, rows, said):
    columns = dict(zip(("image_id", "other_id", "kind"), map(list, zip(*rows, strict=True)), strict=True))
    tables.write(str(tmp_path / "corrections.csv"), pa.table(columns))
    with pytest.raises(UserError, match=said):
        group(dataclasses.replace(place, corrections=str(tmp_path / "corrections.csv")))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_exhaustive_index_finds_the_same(place, tmp_path):
    result = group(place)
    index = str(tmp_path / "index")
    build(IndexConfig(descriptors=place.descriptors, out=index, factory="HNSW32"))
    again = dataclasses.replace(place, out=str(tmp_path / "again"), index=index, parameters="efSearch=200")
    assert group(again) == result
    assert (
        files_of(again)["groups.parquet"]
        .drop(columns="confidence")
        .equals(files_of(place)["groups.parquet"].drop(columns="confidence"))
    )


def test_mining_takes_photos_alone_as_negatives_only(place, tmp_path, write_manifest):
    group(place)
    table = manifests.read(f"{place.out}/manifest.csv").table
    train = table.set_column(table.column_names.index("split"), "split", pa.array(["train"] * len(table)))
    tables.write(str(tmp_path / "train.csv"), train)
    mine_folder(MineConfig(manifest=str(tmp_path / "train.csv"), descriptors=place.descriptors,
                           out=str(tmp_path / "mined"), margin=2.0))  # fmt: skip
    mined = pq.read_table(tmp_path / "mined" / "triplets.parquet").to_pandas()
    objects = files_of(place)["groups.parquet"].query("level == 'object'")
    alone = set(objects[objects["group"].isna()]["image_id"])
    assert alone and alone <= set(mined["negative_id"])
    assert not alone & {*mined["anchor_id"], *mined["positive_id"]}


@pytest.mark.slow
def test_small_groups_have_no_label(place):
    group(dataclasses.replace(place, min_group=4))
    objects = files_of(place)["groups.parquet"].query("level == 'object'").set_index("image_id")
    labels = files_of(place)["manifest.csv"].set_index("image_id")["label"]
    small = objects.index[(objects["size"] > 1) & (objects["size"] < 4)]
    assert len(small) and labels[small].isna().all() and objects.loc[small, "group"].isna().all()
    assert labels[objects.index[objects["size"] >= 4]].notna().all()
