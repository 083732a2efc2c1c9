"""Photos in folders and stores: which are listed, what is skipped, how they are named, prefetched and checked."""

import logging
import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from dim.data import photos
from dim.data.limits import DecodeError
from dim.data.photos import file_names, list_folder
from dim.errors import UserError
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
    reasons = photos.unreadable(uris, photos.opens)
    assert reasons.keys() == {1, 4}  # the header of the cut photo is sound
    assert reasons[1] == "no such file"
    assert photos.unreadable([], photos.opens) == {}


def test_photos_of_a_store_are_checked_many_at_a_time(s3, folder):
    bucket = s3.bucket("checked")
    content = (folder / "a" / "1.png").read_bytes()
    uris = [f"{bucket}/{number}" for number in range(40)]
    assert not any(storage.parallel_map(lambda uri: files.write_bytes(uri, content), uris))
    s3.faults(latency=0.1)
    assert photos.unreadable([*uris, f"{bucket}/none"], photos.opens) == {40: photos.MISSING}
    assert s3.faults()["most"] >= 12


def test_opens_reads_little(folder):
    (folder / "a" / "cut.png").write_bytes((folder / "a" / "1.png").read_bytes()[:20])
    with pytest.raises(DecodeError):
        photos.opens(f"{folder}/a/cut.png")


@pytest.mark.parametrize("uri", ["{}", "{}/", "file://{}"])
def test_listed(folder, uri):
    assert file_names(uri.format(folder)) == ["a/1.png", "b/2.png", "b/deep/3.png"]


def test_links_are_followed(folder, tmp_path):
    (folder / "c").symlink_to(folder / "b")
    (folder / "a" / "link.png").symlink_to(folder / "a" / "1.png")
    found = file_names(str(folder))
    assert "a/link.png" in found
    assert "c/deep/3.png" in found


def test_links_that_lead_round_end(tmp_path):
    for number in range(20):
        here, below = tmp_path / str(number), tmp_path / str(number + 1)
        here.mkdir(exist_ok=True)
        below.mkdir()
        (here / "a").symlink_to(below)
        (here / "b").symlink_to(below)
        (here / "up").symlink_to(tmp_path)
    (tmp_path / "20" / "photo.jpg").touch()
    found = file_names(str(tmp_path))
    assert "20/photo.jpg" in found and len(found) <= 100


def test_whatever_is_not_taken_is_named(folder):
    (folder / "a" / "broken.jpg").symlink_to(folder / "gone.jpg")
    (folder / "a" / "itself.jpg").symlink_to(folder / "a" / "itself.jpg")
    (folder / "b" / "up").symlink_to(folder)
    (folder / "b" / "round").symlink_to(folder / "b" / "deep" / "back")
    (folder / "b" / "deep" / "back").symlink_to(folder / "b" / "round")
    (folder / "empty").mkdir()
    os.mkfifo(folder / "a" / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "a" / "socket"))
    for name in (b"a/\xff.jpg", b"\xfe/in.jpg"):
        path = Path(os.fsdecode(bytes(folder) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = list_folder(str(folder))
    assert found.files == ["a/1.png", "b/2.png", "b/deep/3.png"]
    assert found.hidden == 2
    assert found.skipped == {
        "\\xfe": "its name is not UTF-8; rename it",
        "a/\\xff.jpg": "its name is not UTF-8; rename it",
        "a/broken.jpg": "a broken link",
        "a/fifo": "neither a file nor a folder",
        "a/itself.jpg": "a link to itself",
        "a/socket": "neither a file nor a folder",
        "b/deep/back": "a link to itself",
        "b/round": "a link to itself",
        "b/up": "a link to a folder above it",
        "empty": "an empty folder",
    }


def as_nobody(call):
    """What `call` returns to a process without rights of its own."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            os.setgid(65534)
            os.setuid(65534)
            said = call()
        except BaseException as error:
            said = repr(error)
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, encoding="utf-8") as answer:
        return answer.read()


@pytest.fixture
def closed(folder):
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    for place in (folder, *folder.parents[:3]):
        place.chmod(0o755)
    (folder / "b").chmod(0o700)
    (folder / "a" / "into.png").symlink_to(folder / "b" / "2.png")
    return folder


def test_a_folder_that_may_not_be_entered(closed):
    said = as_nobody(lambda: repr(list_folder(str(closed))))
    skipped = {
        "a/into.png": "cannot be read: Permission denied",
        "b": "a folder that cannot be read: Permission denied",
    }
    assert said == f"Listing(files=['a/1.png'], skipped={skipped!r}, hidden=2)"


def test_a_folder_that_may_not_be_entered_at_all(closed):
    said = as_nobody(lambda: repr(list_folder(f"{closed}/b")))
    assert said.startswith("UserError(") and f"cannot read the folder '{closed}/b': Permission denied" in said


def test_a_folder_whose_path_is_too_long(folder, monkeypatch):
    monkeypatch.chdir(folder / "b")
    for _ in range(20):
        Path("x" * 250).mkdir()
        os.chdir("x" * 250)
    ((place, reason),) = list_folder(str(folder)).skipped.items()
    assert place.startswith("b/xxx") and reason == "a folder that cannot be read: File name too long"


def test_the_log_names_what_was_not_taken(folder, caplog):
    caplog.set_level(logging.WARNING, "dim")
    for name in ("x.jpg", "y.jpg"):
        (folder / "a" / name).symlink_to(folder / "gone.jpg")
    file_names(str(folder))
    assert caplog.messages == [f"skipped in {str(folder)!r}: 2 (2 × a broken link), such as 'a/x.jpg'"]


def test_there_is_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the folder .*No such file"):
        list_folder(str(tmp_path / "none"))


def test_a_store(s3):
    bucket = s3.bucket("listing")
    for name in ("b/2.jpg", "a/1.jpg", ".hidden/3.jpg", ".hidden/4.jpg", "a/.5.jpg"):
        files.write_bytes(f"{bucket}/set/{name}", b"")
    found = list_folder(f"{bucket}/set")
    assert (found.files, found.skipped, found.hidden) == (["a/1.jpg", "b/2.jpg"], {}, 2)
