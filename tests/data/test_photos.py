import pytest
from PIL import Image

from dim.data import photos
from dim.data.decode import DecodeError


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.png", "b/deep/3.png", "a/1.png", ".hidden/4.png", "a/.5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    return tmp_path


def test_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert photos.named(["a/b/1.jpg", f"{tmp_path}/a/1.jpg", "ab/1.jpg"], "a") == [
        "b/1.jpg",
        "1.jpg",
        f"{tmp_path}/ab/1.jpg",
    ]
    assert photos.named(["1.jpg"], ".") == ["1.jpg"]
    assert photos.named(["s3://b/f/1.jpg", "s3://b/g/1.jpg"], "s3://b/f") == ["1.jpg", "s3://b/g/1.jpg"]
    assert photos.named(["s3://b/f/1.jpg"], ".") == ["s3://b/f/1.jpg"]


def test_unreadable(folder, monkeypatch):
    monkeypatch.setattr(photos, "_AT_ONCE", 2)
    whole = (folder / "a" / "1.png").read_bytes()
    (folder / "a" / "cut.png").write_bytes(whole[:60])
    uris = [f"{folder}/{name}" for name in ("a/1.png", "none.png", "b/2.png", "a/cut.png", "a")]
    assert photos.unreadable(uris, photos.opens).keys() == {1, 4}  # the header of the cut photo is sound
    reasons = photos.unreadable(uris, photos.decodes)
    assert reasons.keys() == {1, 3, 4}
    assert reasons[1] == "no such file"
    assert photos.unreadable([], photos.decodes) == {}


def test_opens_reads_little(folder):
    (folder / "a" / "cut.png").write_bytes((folder / "a" / "1.png").read_bytes()[:20])
    with pytest.raises(DecodeError):
        photos.opens(f"{folder}/a/cut.png")
