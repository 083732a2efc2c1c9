"""Listings of many objects: they agree with single requests, and never take longer."""

import contextlib
import json
import time
from collections import Counter

import pyarrow.fs as pafs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim.io import files, object_listings, processes, storage

NAMES = (
    "a.jpg",
    "50 % off.jpg",
    "%41.jpg",
    "*?.jpg",
    "+&=.jpg",
    "Ü ☃.jpg",
    "deep/er/b.jpg",
    "a.jpg.jpg",
    "#x",
    "[1].jpg",
)


def facts(info):
    return info.path, info.type, info.size, info.mtime_ns


def listed(uris, wanted):
    """What listings tell without single requests, once they have told it of `wanted` files."""
    end = time.monotonic() + 60
    with object_listings._arriving(uris) as known:
        while len(known) < wanted:
            assert time.monotonic() < end
            time.sleep(0.05)
        return known


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(object_listings, "FEWEST", 1)
    monkeypatch.setattr(object_listings, "PAGE", 1)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_listing_says_what_the_store_says_of_each(scheme, request, few):
    bucket = request.getfixturevalue(scheme).bucket("listed-is-asked")
    uris = [f"{bucket}/photos {part}/{name}" for part in range(2) for name in NAMES]
    for uri in uris:
        files.write_bytes(uri, uri.encode())
    asked = [facts(files.info(uri)) for uri in uris]
    known = listed(uris, len(uris))
    assert [facts(known[uri]) for uri in uris] == asked
    assert all(kind == pafs.FileType.File and mtime_ns > 0 for _, kind, _, mtime_ns in asked)
    others = [f"{bucket}/none.jpg", f"{bucket}/photos 0", f"{bucket}/photos 0/deep"]  # no file, and two folders
    found = files.infos([others[0], *uris, *others[1:], uris[0]])
    assert list(map(facts, found)) == [facts(files.info(uri)) for uri in (others[0], *uris, *others[1:], uris[0])]


def test_many_photos_are_one_request(s3, few):
    bucket = s3.bucket("many-listed")
    uris = [f"{bucket}/{number // 10}/{number}" for number in range(300)]
    assert not any(storage.parallel_map(lambda uri: files.write_bytes(uri, b"photo"), uris))
    object_listings.PAGE = 300
    s3.faults()
    assert {info.size for info in listed(uris, 300).values()} == {5}
    assert s3.faults()["requests"] == 1


def test_what_a_listing_has_said_is_not_asked(monkeypatch):
    uris = [f"s3://bucket/{number}" for number in range(3)]
    known = {uri: pafs.FileInfo(uri, pafs.FileType.File, size=1) for uri in uris[:2]}
    monkeypatch.setattr(object_listings, "_arriving", lambda _: contextlib.nullcontext(known))
    asked = []

    def ask(uri):
        asked.append(uri)
        return pafs.FileInfo(uri, pafs.FileType.NotFound)

    assert [info.size for info in object_listings.infos(uris, ask).values()] == [1, 1, None]
    assert asked == uris[2:]


def test_a_listing_that_never_ends_is_ended_once_all_is_known(s3, few, monkeypatch):
    bucket = s3.bucket("never-listed")
    files.write_bytes(f"{bucket}/a", b"photo")
    begun = []

    def sleeping(module):
        begun.append(module)
        return ["sleep", "600"]

    monkeypatch.setattr(processes, "command", sleeping)
    assert files.infos([f"{bucket}/a"])[0].size == 5
    assert begun == [object_listings.__name__]


@pytest.mark.parametrize("said", ["", "no JSON", '[["s3://'])
def test_a_listing_that_fails_is_done_without(s3, few, monkeypatch, said):
    bucket = s3.bucket("not-listed")
    files.write_bytes(f"{bucket}/a", b"photo")
    monkeypatch.setattr(processes, "command", lambda _: ["echo", "-n", said])
    assert files.infos([f"{bucket}/a"])[0].size == 5


def test_the_process_that_lists_ends_well_when_it_is_done():
    with processes.start(object_listings.__name__, None) as process:
        process.stdin.write(json.dumps({"folders": [], "uris": []}).encode() + b"\n")
        process.stdin.flush()
        assert (process.wait(), process.stdout.read()) == (0, b"")


def test_the_process_that_lists_ends_with_its_parent(s3, few):
    bucket = s3.bucket("orphan")
    s3.faults(latency=5)
    with processes.start(object_listings.__name__, None) as process:
        process.stdin.write(json.dumps({"folders": [f"{bucket}/a"], "uris": [f"{bucket}/a/b"]}).encode() + b"\n")
        process.stdin.flush()
        time.sleep(0.5)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait() == 1


FOLDERS = st.lists(st.sampled_from("abc"), max_size=3).map(lambda parts: "/".join(["s3://bucket", *parts]))


@given(st.lists(FOLDERS, max_size=20), st.integers(1, 5))
def test_what_is_worth_listing(folders, page):
    uris = [f"{folder}/{number}.jpg" for number, folder in enumerate(folders)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(object_listings, "PAGE", page)
        found = object_listings.worth_listing(uris)
    # By hand: the deepest folder with enough takes its photos away from those above it.
    left, expected = set(uris), set()
    every = {"/".join(uri.split("/")[:end]) for uri in uris for end in range(3, uri.count("/") + 1)}
    for folder in sorted(every, key=lambda name: -name.count("/")):
        below = {uri for uri in left if uri.startswith(f"{folder}/")}
        if len(below) >= page:
            expected.add(folder)
            left -= below
    assert Counter(found) == Counter(expected)
