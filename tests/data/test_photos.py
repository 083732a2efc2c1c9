import threading

import pytest
from PIL import Image

from dim.data import photos
from dim.data.decode import DecodeError
from dim.io import files, storage


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.png", "b/deep/3.png", "a/1.png", ".hidden/4.png", "a/.5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    return tmp_path


def test_manifest_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert photos.manifest_paths(["a/b/1.jpg", f"{tmp_path}/a/1.jpg", "ab/1.jpg"], "a") == [
        "b/1.jpg",
        "1.jpg",
        f"{tmp_path}/ab/1.jpg",
    ]
    assert photos.manifest_paths(["1.jpg"], ".") == ["1.jpg"]
    assert photos.manifest_paths(["s3://b/f/1.jpg", "s3://b/g/1.jpg"], "s3://b/f") == ["1.jpg", "s3://b/g/1.jpg"]
    assert photos.manifest_paths(["s3://b/f/1.jpg"], ".") == ["s3://b/f/1.jpg"]


def test_unreadable(folder):
    whole = (folder / "a" / "1.png").read_bytes()
    (folder / "a" / "cut.png").write_bytes(whole[:60])
    uris = [f"{folder}/{name}" for name in ("a/1.png", "none.png", "b/2.png", "a/cut.png", "a")]
    assert photos.unreadable(uris, photos.opens).keys() == {1, 4}  # the header of the cut photo is sound
    reasons = photos.unreadable(uris, photos.decodes)
    assert reasons.keys() == {1, 3, 4}
    assert reasons[1] == "no such file"
    assert photos.unreadable([], photos.decodes) == {}


def test_photos_are_read_ahead_with_two_requests_each(s3):
    bucket = s3.bucket("read-ahead")
    uris = [f"{bucket}/{number}.jpg" for number in range(40)]
    written = [uri.encode() * 100 for uri in uris]
    written[7] = b"x" * (photos.READ_AHEAD + 1)
    written[9] = b""
    assert not any(storage.at_once(lambda pair: files.write_bytes(*pair), zip(uris, written, strict=True)))
    s3.faults(latency=0.05)
    assert [photo.read() for photo in photos.prefetch(uris)] == written
    counts = s3.faults()
    assert counts["most"] >= 12
    assert counts["GET"] == 39 and counts["HEAD"] == 42  # what is large, and what is empty, is opened again


def test_a_photo_that_cannot_be_read_says_so_in_its_turn(folder):
    uris = [f"{folder}/{name}" for name in ("a/1.png", "none.png", "a", "b/2.png")]
    one, none, no_file, two = photos.prefetch(uris)
    with pytest.raises(FileNotFoundError):
        none.read()
    with pytest.raises(OSError, match="is no file"):
        no_file.read()
    assert one.read() == two.read() == photos.read(uris[0])
    assert list(photos.prefetch([])) == []


@pytest.mark.parametrize("check", [photos.opens, photos.decodes])
def test_photos_of_a_store_are_checked_many_at_a_time(s3, folder, check):
    bucket = s3.bucket(f"checked-{check.__name__}")
    content = (folder / "a" / "1.png").read_bytes()
    uris = [f"{bucket}/{number}" for number in range(40)]
    assert not any(storage.at_once(lambda uri: files.write_bytes(uri, content), uris))
    s3.faults(latency=0.1)
    assert photos.unreadable([*uris, f"{bucket}/none"], check) == {40: photos.MISSING}
    assert s3.faults()["most"] >= 12


def test_a_machine_of_many_cores_checks_a_photo_on_each(monkeypatch):
    monkeypatch.setattr(photos.os, "cpu_count", lambda: 40)
    all_cores = threading.Barrier(40, timeout=20)
    assert photos.unreadable(list(map(str, range(40))), lambda _: all_cores.wait()) == {}


def test_opens_reads_little(folder):
    (folder / "a" / "cut.png").write_bytes((folder / "a" / "1.png").read_bytes()[:20])
    with pytest.raises(DecodeError):
        photos.opens(f"{folder}/a/cut.png")
