import contextlib
import json
import os
import random
import subprocess
import sys
import tarfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dim.app import memory, tasks
from dim.data import isolated, manifest
from dim.data import split as splitting
from dim.data.config import SplitConfig
from dim.data.decode import prepared
from dim.data.labelled import unique_ids
from dim.data.limits import LIMITS
from dim.data.split import by_label, per_label, split
from dim.errors import UserError
from dim.io import files, tables

LABELS = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=60)


def ids_of(labels):
    return [f"{label}/{number}" for number, label in enumerate(labels)]


@given(LABELS, st.sampled_from((0, 0.1, 0.2, 0.34, 0.5)), st.sampled_from((0, 0.1, 0.2, 0.34)), st.integers(0, 3))
def test_by_label_keeps_labels_whole(labels, val, test, seed):
    distinct = len(set(labels))
    expected = {
        "val": max(1, round(val * distinct)) if val else 0,
        "test": max(1, round(test * distinct)) if test else 0,
    }
    if sum(expected.values()) >= distinct:
        with pytest.raises(UserError, match="too few labels"):
            by_label(labels, val, test, seed)
        return
    labels_of = defaultdict(set)
    for label, name in zip(labels, by_label(labels, val, test, seed), strict=True):
        labels_of[name].add(label)
    assert {name: len(labels_of[name]) for name in expected} == expected
    assert sum(len(group) for group in labels_of.values()) == distinct


@given(LABELS, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_per_label_takes_the_numbers_from_each_label(labels, val, test, seed):
    splits = per_label(labels, ids_of(labels), val, test, seed)
    for label in set(labels):
        taken = [name for other, name in zip(labels, splits, strict=True) if other == label]
        assert taken.count("test") == min(test, len(taken))
        assert taken.count("val") == min(val, len(taken) - taken.count("test"))


@given(LABELS, st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(labels, seed, chance):
    rows = list(zip(labels, ids_of(labels), strict=True))
    shuffled = rows.copy()
    chance.shuffle(shuffled)

    def splits(rows):
        labels, ids = zip(*rows, strict=True)
        return (
            dict(zip(labels, by_label(labels, 0, 0, seed), strict=True)),
            dict(zip(ids, per_label(labels, ids, 1, 1, seed), strict=True)),
        )

    assert splits(rows) == splits(shuffled)


@pytest.mark.parametrize(("seed", "test", "val"), [(0, "abd", "ij"), (1, "bdh", "eg")])
def test_the_split_of_a_seed_stays_the_same_for_ever(seed, test, val):
    splits = dict(zip("abcdefghij", by_label("abcdefghij", 0.2, 0.3, seed), strict=True))
    assert "".join(label for label in splits if splits[label] == "test") == test
    assert "".join(label for label in splits if splits[label] == "val") == val


@given(st.lists(st.sampled_from(["a/1.jpg", "a/1.png", "a/1", "a/1.jpg.png", "b.c/1", "b.c/1.jpg"]), max_size=8))
def test_ids_are_unique_whatever_the_order(paths):
    ids = unique_ids(paths)
    assert len(set(ids)) == len(paths)
    shuffled = random.Random(0).sample(paths, len(paths))
    assert sorted(zip(paths, ids, strict=True)) == sorted(zip(shuffled, unique_ids(shuffled), strict=True))


def test_ids_are_paths_without_their_ending():
    assert unique_ids(["a/1.jpg", "b.c/2", "s3://bucket/3.png"]) == ["a/1", "b.c/2", "s3://bucket/3"]
    assert unique_ids(["a/1.png", "a/1.jpg", "a/1.jpg"]) == ["a/1.png", "a/1", "a/1.jpg"]


@pytest.fixture
def shelf(tmp_path):
    """Labels A to J with 3 photos each (A: 4), K and A/deep with one; one broken photo in A, a hidden file, a file
    without a label.
    """
    for label in "ABCDEFGHIJ":
        for number in range(3):
            photo(tmp_path / "shelf" / label / f"{number}.png")
    photo(tmp_path / "shelf" / "K" / "only.png")
    photo(tmp_path / "shelf" / "A" / "3.png")
    photo(tmp_path / "shelf" / "A" / "deep" / "er.png")
    (tmp_path / "shelf" / "A" / "broken.jpg").write_bytes(b"<html>")
    (tmp_path / "shelf" / "A" / ".hidden.jpg").write_bytes(b"")
    (tmp_path / "shelf" / "README.md").write_text("photos")
    return tmp_path / "shelf"


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7)).save(path)


def ran(images, out, **flags):
    result = split(SplitConfig(images=str(images), out=str(out), **flags))
    return result, manifest.read(str(out))


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_a_folder_by_label(shelf, tmp_path, name):
    Image.new("L", (9, 7)).save(shelf / "B" / "0.png", save_all=True, append_images=[Image.new("L", (9, 7), 255)])
    result, rows = ran(shelf, tmp_path / "out" / name)
    counts = Counter(rows.table["split"].to_pylist())
    expected = {"images": 31, "labels": 10, **counts, "unreadable": 1, "several_frames": 1, "left_out": 2}
    expected |= {"skipped": 1, "hidden": 1}
    assert result == {"manifest": str(tmp_path / "out" / name), **expected}
    assert len(set(rows.select("val").labels)) == 1
    assert len(set(rows.select("test").labels)) == 2
    assert set(rows.labels) == set("ABCDEFGHIJ")
    assert all(Path(path).exists() for path in rows.paths)
    unreadable = tables.read(str(tmp_path / "out" / "m.unreadable.csv")).to_pylist()
    assert [row["label"] for row in unreadable] == ["A", None]
    assert unreadable[0]["path"] == str(shelf / "A" / "broken.jpg")
    assert "<html>" in unreadable[0]["reason"]
    assert unreadable[1]["path"] == str(shelf / "README.md")
    assert unreadable[1]["reason"] == "it is not in the folder of a label"


def test_photos_over_the_limit_are_unreadable(shelf, tmp_path):
    Image.new("L", (400, 300)).save(shelf / "B" / "large.png")
    result, _ = ran(shelf, tmp_path / "m.csv", max_megapixels=0.1)
    assert result["unreadable"] == 2
    reasons = {row["reason"] for row in tables.read(str(tmp_path / "m.unreadable.csv")).to_pylist()}
    assert "the photo has 400 × 300 pixels; the limit is 100,000; --max-megapixels 1 allows it" in reasons
    assert ran(shelf, tmp_path / "m.csv", max_megapixels=0.12)[0]["unreadable"] == 1


def test_a_folder_per_label(shelf, tmp_path):
    result, rows = ran(shelf, tmp_path / "m.csv", val_per_label=1, test_per_label=1, ignore_label=("B", "C"))
    assert (result["labels"], result["val"], result["test"], result["left_out"]) == (8, 8, 8, 8)
    counts = Counter(zip(rows.labels, rows.table["split"].to_pylist(), strict=True))
    assert all(counts[label, "val"] == counts[label, "test"] == 1 for label in set(rows.labels))
    assert rows.table["path"].to_pylist()[0].startswith("shelf/A/")  # relative to the manifest


def test_labels_with_too_few_photos_are_left_out(shelf, tmp_path):
    assert ran(shelf, tmp_path / "m.csv", min_per_label=1)[0]["labels"] == 12
    assert ran(shelf, tmp_path / "m.csv", min_per_label=4, val_labels=0, test_labels=0)[0]["labels"] == 1
    # One photo of each must be left for train, even if a lower number is asked for.
    assert ran(shelf, tmp_path / "m.csv", test_per_label=3, min_per_label=1)[0]["labels"] == 1


def test_same_seed_same_split(shelf, tmp_path):
    contents = []
    for seed in (0, 0, 1):
        ran(shelf, tmp_path / "m.csv", seed=seed)
        contents.append((tmp_path / "m.csv").read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_a_label_is_the_folder_that_holds_the_photo(tmp_path):
    """Twelve objects in three collections were three labels named as the collections."""
    for number in range(24):
        photo(tmp_path / "tree" / f"collection {number % 3}" / f"object {number % 12}" / f"{number}.png")
    result, rows = ran(tmp_path / "tree", tmp_path / "m.csv")
    assert (result["images"], result["labels"]) == (24, 12)
    assert set(rows.labels) == {f"collection {number % 3}/object {number}" for number in range(12)}


def split_tree(folder, *tops):
    for top in tops:
        for label in "ABC":
            photo(folder / top / label / f"{top}.png")
            photo(folder / top / label / "same name.png")
    return folder


@pytest.mark.parametrize(
    "tops",
    [("train", "val", "test"), ("Train", "Valid", "TEST"), ("train", "validation", "test"), ("train", "test")],
)
def test_folders_that_are_splits(tmp_path, caplog, tops):
    caplog.set_level("INFO")
    tree = split_tree(tmp_path / "tree", *tops)
    photo(tree / tops[0] / "loose.png")
    photo(tree / tops[0] / "D" / "deep" / "1.png")
    photo(tree / tops[1] / "D" / "deep" / "1.png")
    (tree / ".DS_Store").touch()
    (tree / "README.md").touch()
    result, rows = ran(tree, tmp_path / "m.csv", seed=1)
    assert set(rows.labels) == {*"ABC", "D/deep"}
    of_top = {"t": "train", "v": "val"} | {"test": "test", "TEST": "test"}
    for path, name in zip(rows.paths, rows.table["split"].to_pylist(), strict=True):
        top = Path(path).relative_to(tree).parts[0]
        assert name == of_top.get(top, of_top[top[0].lower()])
    assert result["images"] == len(rows) == 6 * len(tops) + 2
    assert (result["labels"], result["skipped"], result["hidden"]) == (4, 2, 1)
    assert "labels in more than one split: 4 of 4" in caplog.messages
    assert len(set(rows.image_ids)) == len(rows)


def test_splits_without_labels(tmp_path):
    for name in ("train", "test"):
        photo(tmp_path / "tree" / name / "1.png")
    with pytest.raises(
        UserError, match="has no photo in a sub-folder of its splits; it needs one sub-folder per label"
    ):
        ran(tmp_path / "tree", tmp_path / "m.csv")


def test_one_folder_that_is_a_split(tmp_path):
    result, _ = ran(split_tree(tmp_path / "tree", "train"), tmp_path / "m.csv")
    assert (result["train"], result["val"], result["test"], result["labels"]) == (6, 0, 0, 3)


def test_a_label_may_be_called_test(tmp_path):
    for label in ("test", "milk", "tea"):
        photo(tmp_path / "tree" / label / "1.png")
        photo(tmp_path / "tree" / label / "2.png")
    result, rows = ran(tmp_path / "tree", tmp_path / "m.csv")
    assert set(rows.labels) == {"test", "milk", "tea"} and result["labels"] == 3


@pytest.mark.parametrize(
    ("tops", "flags", "message"),
    [
        (("train", "test"), {"test_labels": 0.2}, "--test-labels 0.2: the top folders of '.*tree' are splits already"),
        (("train", "test"), {"val_per_label": 0}, "--val-per-label 0: the top folders of '.*tree' are splits already"),
        (("train", "test", "more"), {}, "folders test and train beside 'more', where they would be parts of labels"),
        (("images/train", "images/test"), {}, "test and train within 'images', .* name .*tree/images"),
        (("x/train", "y/train", "y/val"), {}, "train and val within 'y', .* make them the only folders at its top"),
        (("train/val", "train/test"), {}, "test and val within a split, .* make them the only folders at its top"),
        (("train/x/val", "train/x/test"), {}, "test and val within 'x'"),
    ],
)
def test_folders_that_may_be_splits(tmp_path, tops, flags, message):
    with pytest.raises(UserError, match=message):
        ran(split_tree(tmp_path / "tree", *tops), tmp_path / "out" / "m.csv", **flags)
    assert not (tmp_path / "out").exists()


def test_whatever_is_not_taken_is_counted_and_named(shelf, tmp_path, caplog):
    """Twelve links to nothing among twelve photos left no trace."""
    for number in range(12):
        (shelf / "B" / f"link {number}.png").symlink_to(tmp_path / "gone" / f"{number}.png")
    (shelf / "C" / "itself").symlink_to(shelf / "C" / "itself")
    (shelf / "nothing").mkdir()
    (shelf / "C" / "=1+1.png").write_bytes(b"")
    Path(os.fsdecode(bytes(shelf) + b"/C/\xff.png")).touch()
    result, _ = ran(shelf, tmp_path / "m.parquet")
    assert (result["images"], result["unreadable"], result["skipped"], result["hidden"]) == (31, 2, 16, 1)
    named = {row["path"]: row["reason"] for row in tables.read(str(tmp_path / "m.unreadable.csv")).to_pylist()}
    assert len(named) == 18
    assert named["shelf/B/link 3.png"] == "a broken link"
    assert named["shelf/C/itself"] == "a link to itself"
    assert named["shelf/nothing"] == "an empty folder"
    assert named["shelf/C/\\xff.png"] == "its name is not UTF-8; rename it"
    told = "\n".join(caplog.messages)
    assert "other files that were skipped: 16 (12 × a broken link, 1 × " in told
    assert "photos that could not be read: 2 (1 × " in told and f"see {tmp_path}/m.unreadable.csv" in told


def test_a_formula_in_the_list_of_what_was_not_taken(shelf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (shelf / "=2").mkdir()
    (shelf / "=2" / "@SUM(1).png").touch()
    split(SplitConfig(images="shelf", out="shelf/m.csv"))
    rows = tables.read("shelf/m.unreadable.csv").to_pylist()
    assert ("'=2/@SUM(1).png", "'=2") in {(row["path"], row["label"]) for row in rows}


def test_one_bad_row_does_not_refuse_a_table(shelf, tmp_path):
    paths = [*(f"shelf/{label}/{number}.png" for label in "AB" for number in range(2))]
    paths += ["https://example.org/1.jpg", "shelf\\A\\2.png", "C:\\photos\\1.jpg", "D:/photos/1.jpg", "gone.jpg"]
    tables.write(str(tmp_path / "photos.csv"), pa.table({"path": paths, "label": [*"AABBAAAAA"]}))
    result, _ = ran(tmp_path / "photos.csv", tmp_path / "m.csv", val_per_label=1)
    assert (result["images"], result["unreadable"]) == (4, 5)
    named = tables.read(str(tmp_path / "m.unreadable.csv"))["reason"].to_pylist()
    assert "'https'" in named[0]
    windows = "no such file; it looks like a Windows path: write it as it is on this machine, with /"
    assert named[1:] == [windows, windows, windows, "no such file"]


def test_labels_that_look_alike_are_told(shelf, tmp_path, caplog):
    labels = ["a", "a ", "nan", "b", "B", "\u00e9", "e\u0301", "3", "3.0", "c", "c/d"]
    paths = [f"shelf/{label}/{number}.png" for label in "ABCD" for number in range(3)][: len(labels)]
    tables.write(str(tmp_path / "photos.csv"), pa.table({"path": paths, "label": labels}))
    result, _ = ran(tmp_path / "photos.csv", tmp_path / "m.csv", min_per_label=1)
    assert result["labels"] == len(labels)
    told = "\n".join(caplog.messages)
    for pair in ("'a' (1 photos) and 'a ' (1 photos)", "'B' (1 photos) and 'b'", "'3' (1 photos) and '3.0'"):
        assert pair in told
    assert "labels that look like missing values: 'nan' (1 photos)" in told
    assert "nested labels are kept apart: 'c' (1 photos) and 'c/d' (1 photos)" in told
    assert told.count(" and ") == 5


def test_photos_in_a_folder_whose_name_is_of_spaces_are_listed(shelf, tmp_path):
    before, _ = ran(tmp_path / "shelf", tmp_path / "m.csv", min_per_label=1)
    for name in (" ", "\u3000", "A "):
        photo(tmp_path / "shelf" / name / "x.png")
    result, rows = ran(tmp_path / "shelf", tmp_path / "m.csv", min_per_label=1)
    assert result["skipped"] == before["skipped"] + 2 and None not in rows.labels and "A " in rows.labels
    listed = {row["path"] for row in tables.read(str(tmp_path / "m.unreadable.csv")).to_pylist() if not row["label"]}
    assert listed >= {"shelf/ /x.png", "shelf/\u3000/x.png"}


def test_a_label_with_something_invisible_in_it_is_told(shelf, tmp_path, caplog):
    labels = ["a", "a\u200b", "\ufeffa", "a\u00ad", "b"]
    table = pa.table({"path": [f"shelf/{label}/0.png" for label in "ABCDE"], "label": labels})
    tables.write(str(tmp_path / "photos.csv"), table)
    ran(tmp_path / "photos.csv", tmp_path / "m.csv", min_per_label=1)
    [told] = [message for message in caplog.messages if "look alike" in message]
    assert told.count("(1 photos)") == 4


def test_a_table_keeps_its_columns_and_gets_ids(shelf, tmp_path):
    paths = ["shelf/A/0.png", "shelf/A/1.png", "shelf/B/0.png", "shelf/B/1.png", "shelf/B/none.png", "shelf/C/0.png"]
    table = pa.table({"path": paths, "label": [*"AABBB", None], "colour": [*"rgbrgb"], "split": ["train"] * 6})
    tables.write(str(tmp_path / "photos.csv"), table)
    result, rows = ran(tmp_path / "photos.csv", tmp_path / "deeper" / "m.csv", test_labels=0.5, val_labels=0)
    assert (result["images"], result["train"], result["test"], result["unreadable"], result["left_out"]) == (
        4,
        2,
        2,
        1,
        1,
    )
    assert list(rows.image_ids) == ["shelf/A/0", "shelf/A/1", "shelf/B/0", "shelf/B/1"]
    assert rows.table["colour"].to_pylist() == [*"rgbr"]
    assert all(Path(path).exists() for path in rows.paths)
    assert tables.read(str(tmp_path / "deeper" / "m.unreadable.csv"))["reason"].to_pylist() == ["no such file"]


def test_a_table_keeps_its_ids(shelf, tmp_path):
    table = pa.table({"image_id": [*"wxyz"], "path": [f"shelf/{p}.png" for p in ("A/0", "A/1", "B/0", "B/1")]})
    pq.write_table(table.append_column("label", pa.array([1, 1, 2, 2])), tmp_path / "photos.parquet")
    _, rows = ran(tmp_path / "photos.parquet", tmp_path / "m.csv", val_per_label=1)
    assert list(rows.image_ids) == [*"wxyz"]
    assert list(rows.labels) == ["1", "1", "2", "2"]


ODD = {
    "list": pa.array([[1]] * 4),
    "struct": pa.array([{"a": 1}] * 4),
    "map": pa.array([[("a", 1)]] * 4, pa.map_(pa.string(), pa.int64())),
    "binary": pa.array([b"\xff"] * 4),
    "uuid": pa.array([b"\xff" * 16] * 4, pa.uuid()),
}


def with_column(folder, **columns):
    paths = [f"shelf/{name}.png" for name in ("A/0", "A/1", "B/0", "B/1")]
    pq.write_table(pa.table({"path": paths, "label": [*"AABB"]} | columns), folder / "photos.parquet")
    return folder / "photos.parquet"


@pytest.mark.parametrize("kind", ODD)
def test_a_column_that_only_parquet_holds(shelf, tmp_path, kind):
    images = with_column(tmp_path, odd=ODD[kind])
    _, rows = ran(images, tmp_path / "m.parquet", val_per_label=1)
    assert rows.table["odd"].to_pylist() == ODD[kind].to_pylist()
    with pytest.raises(UserError, match=r"photos\.parquet': column 'odd' must be text: "):
        ran(images, tmp_path / "out" / "m.csv", val_per_label=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("odd", [pa.array([*"rgbr"], pa.string_view()), pa.array([*"rgbr"], pa.json_())], ids=str)
@pytest.mark.parametrize("out", ["m.csv", "m.parquet"])
def test_a_column_that_becomes_text(shelf, tmp_path, odd, out):
    _, rows = ran(with_column(tmp_path, odd=odd), tmp_path / out, val_per_label=1)
    assert rows.table["odd"].to_pylist() == [*"rgbr"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (ODD["list"], "column 'path' must be text: Unsupported cast"),
        (ODD["binary"], "column 'path' must be text: Invalid UTF8"),
        (pa.nulls(4), "row 1 has no path"),
        (pa.array(["a", None, "b", "c"]), "row 2 has no path"),
    ],
)
def test_paths_that_no_id_can_be_made_of(tmp_path, path, message):
    with pytest.raises(UserError, match=message):
        ran(with_column(tmp_path, path=path), tmp_path / "m.csv")


def test_the_demo_set_can_be_split_again(demo, tmp_path):
    result, rows = ran(demo, tmp_path / "m.parquet")
    assert (result["images"], result["labels"], result["unreadable"]) == (310, 31, 0)
    assert (result["val"], result["test"]) == (30, 60)
    labels = [set(rows.select(name).labels) for name in ("train", "val", "test")]
    assert not (labels[0] & labels[1] or labels[0] & labels[2] or labels[1] & labels[2])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"images": "nowhere"}, "no folder 'nowhere'"),
        ({"images": "nowhere.csv"}, "no file 'nowhere.csv'"),
        ({"images": "empty"}, "no photo in a sub-folder"),
        ({"images": "flat"}, "no photo in a sub-folder"),
        ({"images": "parts"}, r"'parts' holds tables \('part-0.parquet'\), not photos; name one table; to join"),
        ({"images": "spark"}, r"'spark' holds tables \('part-0.parquet'\), not photos; name one table; to join"),
        ({"images": "hive"}, r"'hive' holds tables \('label=a/0.parquet'\), not photos; name one table; to join"),
        ({"images": "hub"}, r"'hub' holds tables \('data/train-0.parquet'\), not photos; name one table; to join"),
        ({"images": "struct.parquet"}, "column 'path' must be text: .* 'path' holds the photos themselves; write each"),
        ({"images": "book.xlsx"}, "'book.xlsx' is neither .parquet nor .csv but a spreadsheet's own file; save its"),
        ({"images": "hugging.parquet"}, "has no column 'path'; .* 'image' holds the photos themselves; write each"),
        (
            {"images": "broken"},
            "none of the 1 photos of 'broken' can be read; the first: the file is empty \\('broken/A/0.png'\\)",
        ),
        ({"images": "nolabel.csv"}, "has no column 'label'"),
        ({"images": "nopath.csv"}, "has no column 'path'"),
        ({"images": "twice.csv"}, "'a' occurs more than once"),
        ({"images": "null.csv"}, "no label left"),
        ({"out": "m.txt"}, "must end in .parquet or .csv"),
        ({"images": "nolabel.csv", "out": "nolabel.csv"}, "is the table to split"),
        ({"val_labels": -0.1}, "--val-labels is a share .* not -0.1"),
        ({"test_labels": 1.0}, "--test-labels is a share .* not 1.0"),
        ({"val_labels": 0.5, "test_labels": 0.5}, "sum to 1"),
        ({"test_labels": 0.95}, "sum to 1.05"),
        ({"val_labels": 0.5, "test_per_label": 1}, "not both kinds"),
        ({"test_per_label": -1}, "--test-per-label must be at least 0, not -1"),
        ({"min_per_label": -1}, "--min-per-label must be at least 0, not -1"),
        ({"min_per_label": 9}, "no label left to split: none has 9 photos"),
        ({"test_per_label": 9}, "no label left to split: none has 10 photos"),
        ({"ignore_label": ("Z",)}, "'Z': no photo"),
        ({"ignore_label": tuple("ABCDEFGHIJK")}, "no label left"),
        ({"ignore_label": tuple("CDEFGHIJK")}, "too few labels"),
    ],
)
def test_wrong_input_is_one_clear_line_and_nothing_is_written(shelf, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "flat", "broken/A", "parts"):
        Path(folder).mkdir(parents=True)
    photo(Path("flat/0.png"))
    Path("broken/A/0.png").touch()
    Path("parts/part-0.parquet").touch()
    for name in ("spark/part-0.parquet", "spark/_SUCCESS", "hive/label=a/0.parquet", "hive/_SUCCESS"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("hub/data").mkdir(parents=True)
    Path("hub/data/train-0.parquet").touch()
    Path("hub/README.md").write_text("A data set of Hugging Face's hub.")
    pq.write_table(pa.table({"path": [{"bytes": b"", "path": "1.jpg"}], "label": [0]}), "struct.parquet")
    Path("book.xlsx").touch()
    pq.write_table(pa.table({"image": [{"bytes": b"", "path": "1.jpg"}], "label": [0]}), "hugging.parquet")
    Path("nolabel.csv").write_text("path\nx.jpg\n")
    Path("nopath.csv").write_text("label\nx\n")
    Path("twice.csv").write_text("image_id,path,label\na,x.jpg,A\na,y.jpg,A\n")
    Path("null.csv").write_text("path,label\nx.jpg,\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        split(SplitConfig(**({"images": "shelf", "out": "out/m.csv"} | flags)))
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_job(shelf, tmp_path):
    job = Path(__file__).resolve().parents[2] / "jobs" / "split.py"

    def run(*flags):
        return subprocess.run([sys.executable, job, *flags], capture_output=True, text=True, cwd=tmp_path, check=False)

    done = run("shelf", "--out", "m.csv", "--ignore-label", "A", "--ignore-label", "B")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["labels"] == 8
    failed = run("shelf", "--out", "m.csv", "--val-label", "0.1")
    assert failed.returncode == 2
    assert failed.stderr == "error: unknown argument '--val-label'; did you mean '--val-labels'?\n"


def test_the_list_of_unreadable_photos_is_of_the_manifest_that_it_stands_beside(shelf, tmp_path, monkeypatch):
    out, listed = tmp_path / "photos.csv", tmp_path / "photos.unreadable.csv"
    split(SplitConfig(str(shelf), str(out)))
    assert listed.exists()
    write = tables.write

    def dying(uri, table):
        write(uri, table)
        raise ZeroDivisionError

    monkeypatch.setattr(tables, "write", dying)
    with pytest.raises(ZeroDivisionError):  # of the two files, the manifest is written
        split(SplitConfig(str(shelf), str(out), seed=1))
    assert out.exists() and not listed.exists()


@pytest.mark.parametrize("written", [str, Path.as_uri], ids=["path", "uri"])
def test_what_a_killed_split_left_is_swept(shelf, tmp_path, written):
    half = [tmp_path / f"my photos{name}.csv.4194304.tmp" for name in ("", ".unreadable")]  # no process has this number
    for path in half:
        path.write_text("half")
    split(SplitConfig(str(shelf), written(tmp_path / "my photos.csv")))
    assert not any(path.exists() for path in half)


@pytest.mark.usefixtures("in_threads")
def test_photos_that_hang_or_kill_are_listed(shelf, tmp_path, monkeypatch):
    """What marks them does so in the processes that decode, see tests/faults/hooks."""
    isolated.end()
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "faults" / "hooks")
    monkeypatch.setattr(isolated, "SECONDS", 2.0)
    marks = {"A/0.png": b"dies by SIGSEGV", "B/1.png": b"hangs for ever", "C/2.png": b"takes all memory"}
    for name, mark in marks.items():
        with open(shelf / name, "ab") as file:
            file.write(mark)
    result, rows = ran(shelf, tmp_path / "m.csv")
    isolated.end()
    assert (result["images"], result["unreadable"]) == (28, 4)
    assert not {"A/0", "B/1", "C/2"} & set(rows.image_ids)
    unreadable = tables.read(str(tmp_path / "m.unreadable.csv")).to_pylist()
    reasons = {Path(row["path"]).relative_to("shelf").as_posix(): row["reason"] for row in unreadable}
    assert reasons["A/0.png"] == "decoding killed the process (SIGSEGV, 3 of 3 attempts)"
    assert reasons["B/1.png"] == "decoding took longer than 2 s"
    assert reasons["C/2.png"].startswith("decoding takes more than ")


def test_tasks_and_units_of_any_size_find_the_same(ray_session, shelf, tmp_path, monkeypatch):
    (shelf / "B" / "1.png").write_bytes(b"")
    found = []
    for connected, most in [(True, 4), (True, 7), (False, 1), (False, 2), (False, 100)]:
        with monkeypatch.context() as patch:
            patch.setattr(splitting, "_FEWEST", most)
            patch.setattr(tasks, "_by_threads" if connected else "_by_tasks", None)  # which must not be called
            patch.setattr(tasks.ray, "is_initialized", lambda connected=connected: connected)
            result, rows = ran(shelf, tmp_path / "m.csv")
        found.append((result, rows.table, (tmp_path / "m.unreadable.csv").read_text()))
    assert found[0][0]["unreadable"] == 2
    assert all(other == found[0] for other in found)


def test_photos_of_a_store_are_read_many_at_a_time(shelf, s3, tmp_path):
    bucket = s3.bucket("split-many")
    for path in shelf.rglob("*.png"):
        files.write_bytes(f"{bucket}/{path.relative_to(shelf)}", path.read_bytes())
    s3.faults(latency=0.1)
    assert ran(bucket, tmp_path / "m.csv")[0]["images"] == 31
    assert s3.faults()["most"] >= 4


def test_photos_in_tars(shelf, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(shelf, "./shelf")
    names = [f"x.tar#./shelf/{label}/{number}.png" for label in "AB" for number in range(3)]
    bad = ["x.tar#./shelf/A/broken.jpg", "x.tar#A/0.png", "y.tar#0.png"]
    table = pa.table({"path": names + bad, "label": [*"AAABBB", *"AAA"]})
    tables.write(str(tmp_path / "photos.csv"), table)
    result, rows = ran(tmp_path / "photos.csv", tmp_path / "m.csv", test_labels=0.5, val_labels=0)
    assert rows.table["path"].to_pylist() == names and result["unreadable"] == 3
    unreadable = tables.read(str(tmp_path / "m.unreadable.csv")).to_pylist()
    assert [row["path"] for row in unreadable] == bad
    assert [row["reason"] for row in unreadable][1:] == ["no such file"] * 2


@pytest.mark.slow
def test_large_photos_are_not_decoded_all_at_one_time(tmp_path):
    """Six that take 0.3 GB each, in a job that is watched with all processes that it starts."""
    pixels = np.zeros((4000, 4500, 4), np.uint8)
    (tmp_path / "photos" / "a").mkdir(parents=True)
    for number in range(6):
        Image.fromarray(pixels).save(tmp_path / "photos" / "a" / f"{number}.png", compress_level=1)
    content = (tmp_path / "photos" / "a" / "0.png").read_bytes()
    flags = ("--out", tmp_path / "m.csv", "--test-per-label", "1")
    command = [sys.executable, Path(__file__).resolve().parents[2] / "jobs" / "split.py", tmp_path / "photos", *flags]
    peak = 0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, text=True
    ) as job:
        while job.poll() is None:
            peak = max(peak, memory_of_session(job.pid))
            time.sleep(0.02)
        assert json.loads(job.stdout.read())["images"] == 6
    at_once = max(1, min(memory.machine() // 2 // LIMITS.memory, os.cpu_count()))
    beside = 2**28 + os.cpu_count() * 2**26  # the job itself, and the processes that decode, without a photo
    assert 2**28 < peak < at_once * prepared(content, 32, "squash").memory + beside


def memory_of_session(number):
    """The bytes that the processes of a session take, what they share counted once."""
    found = 0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, StopIteration):  # it is no process, or has ended
            if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == number:
                lines = (entry / "smaps_rollup").read_text().splitlines()
                found += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return found
