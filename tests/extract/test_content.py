"""The content fingerprint: it changes with the photo, and with nothing else."""

import contextlib
import hashlib
import os
import time

import pyarrow as pa
import pytest

from dim.data import manifest as manifests
from dim.errors import UserError
from dim.extract import identity, photo_files
from dim.io import files, object_listings


def found_in(folder, **columns):
    table = pa.table({"image_id": [str(row) for row in range(len(columns["path"]))], **columns})
    return identity.fingerprint_photos(manifests.checked(str(folder / "photos.csv"), table))


def contents(folder, **columns):
    return found_in(folder, **columns).contents.to_pylist()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"photo")
    return tmp_path


def test_size_time_path_and_box_count_and_nothing_else(folder, tmp_path_factory):
    first = contents(folder, path=["a.jpg"])
    assert contents(folder, path=["a.jpg"], label=["x"], split=["val"]) == first
    box = {"x1": [0], "y1": [0], "x2": [5], "y2": [5]}
    others = [contents(folder, path=["a.jpg"], **box)]
    others.append(contents(folder, path=["./a.jpg"]))
    os.utime(folder / "a.jpg", ns=(1, 1))
    others.append(contents(folder, path=["a.jpg"]))
    (folder / "a.jpg").write_bytes(b"another photo")
    os.utime(folder / "a.jpg", ns=(1, 1))
    others.append(contents(folder, path=["a.jpg"]))
    assert len({first[0], *(found[0] for found in others)}) == 5


def test_a_folder_that_moves_with_its_manifest_stays_what_it_was(folder, tmp_path):
    first = contents(folder, path=["a.jpg"])
    (tmp_path / "elsewhere").mkdir()
    (folder / "a.jpg").rename(tmp_path / "elsewhere" / "a.jpg")
    assert contents(tmp_path / "elsewhere", path=["a.jpg"]) == first


def test_photos_on_several_storages_keep_their_order(folder):
    paths = ["a.jpg", "none.jpg", f"file://{folder}/a.jpg", f"{folder}/a.jpg", "."]
    found = found_in(folder, path=paths)
    assert found.present.tolist() == [True, False, True, True, False]
    assert len(set(found.contents.to_pylist())) == 5


def test_a_store_s_photos_keep_their_content_however_they_are_asked_for(s3, monkeypatch):
    bucket = s3.bucket("content")
    uris = [f"{bucket}/{number} ü%.jpg" for number in range(3)]
    for uri in uris:
        files.write_bytes(uri, b"photo")
    filesystem, _ = files.locate(bucket)
    one_by_one = [
        hashlib.sha256(f"{uri}\t{info.size}\t{info.mtime_ns}\tNone".encode()).hexdigest()[:32]
        for uri, info in zip(uris, filesystem.get_file_info([uri[5:] for uri in uris]), strict=True)
    ]
    found = manifests.checked("photos.csv", pa.table({"image_id": ["a", "b", "c"], "path": uris}))
    assert identity.fingerprint_photos(found).contents.to_pylist() == one_by_one
    monkeypatch.setattr(object_listings, "FEWEST", 1)
    monkeypatch.setattr(object_listings, "PAGE", 1)
    monkeypatch.setattr(files, "info", lambda uri: pytest.fail(f"asked for {uri}"))
    arriving = object_listings._arriving

    @contextlib.contextmanager
    def arrived(uris):
        with arriving(uris) as known:
            end = time.monotonic() + 60
            while len(known) < len(uris) and time.monotonic() < end:
                time.sleep(0.05)
            yield known

    monkeypatch.setattr(object_listings, "_arriving", arrived)
    assert identity.fingerprint_photos(found).contents.to_pylist() == one_by_one


def test_not_one_photo_there_is_a_mistake(folder):
    with pytest.raises(UserError, match=r"none of the 2 photos of .*photos\.csv' exists, the first at '.*/x/a\.jpg'"):
        contents(folder, path=["x/a.jpg", "x/b.jpg"])


NAMES = (
    "a.jpg",
    "none.jpg",
    "b/c.jpg",
    "./a.jpg",
    "b/../a.jpg",
    "b",
    "x" * 300,
    "link.jpg",
    "fifo",
    "t.tar#m/x.jpg",
)


@pytest.mark.parametrize("unit", (1, 3, 100))
def test_units_of_any_size_give_what_the_formula_says(folder, monkeypatch, unit):
    (folder / "b").mkdir()
    (folder / "b" / "c.jpg").write_bytes(b"another")
    (folder / "link.jpg").symlink_to("a.jpg")
    (folder / "t.tar").write_bytes(b"a tar")
    os.mkfifo(folder / "fifo")
    monkeypatch.setattr(photo_files, "UNIT", unit)
    boxes = [None, (0.5, 0.0, 5.0, 1e22), *[None] * (len(NAMES) - 2)]
    corners = {name: [box and box[axis] for box in boxes] for axis, name in enumerate(manifests.BOX)}
    expected = []
    for name, box in zip(NAMES, boxes, strict=True):
        info = files.info(f"{folder}/{name.partition('#')[0]}")
        key = f"{name}\t{info.size}\t{info.mtime_ns}\t{box}"
        expected.append(hashlib.sha256(key.encode()).hexdigest()[:32])
    assert contents(folder, path=NAMES, **corners) == expected


def test_no_two_units_list_the_same_folder_of_a_store(monkeypatch):
    monkeypatch.setattr(object_listings, "PAGE", 3)
    monkeypatch.setattr(photo_files, "UNIT", 2)
    places = [
        *(f"s3://b/deep/{number % 2}/{number}" for number in range(8)),
        *(f"s3://b/few/{number}/x" for number in range(4)),
        *("/local/x", "s3://other/x", "s3://b/deep/x", "gs://b/x", "/local/y", "/local/z"),
    ] * 2
    units = [unit.to_pylist() for unit in photo_files.units(pa.chunked_array([places[:5], places[5:]]))]
    assert sorted(row for unit in units for row in unit) == list(range(len(places)))
    listed = [object_listings.worth_listing([places[row] for row in unit]) for unit in units]
    folders = [folder for unit in listed for folder in unit]
    assert sorted(folders) == ["s3://b/deep/0", "s3://b/deep/1", "s3://b/few"]
    for unit, found in zip(units, listed, strict=True):
        assert len(unit) <= 2 or found
