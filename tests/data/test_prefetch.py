"""Photos read in advance: their own files, and files in tars."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim.data import photos
from dim.data import prefetch as prefetching
from dim.data.limits import LIMITS, DecodeError
from dim.data.prefetch import READ_AHEAD, prefetch, ranges
from dim.io import files, storage, tars


def packed(path, contents):
    with tarfile.open(path, "w") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def outcomes(uris):
    """Position → content or reason."""
    found = {}
    for photo in prefetch(uris):
        assert photo.position not in found
        try:
            found[photo.position] = photo.read()
        except (OSError, DecodeError) as error:
            found[photo.position] = f"{type(error).__name__}: {error}"
    assert sorted(found) == list(range(len(uris)))
    return found


@given(
    runs=st.lists(st.tuples(st.sampled_from(["a.jpg", "x.tar#{}", "x.tar#y.tar#{}", "z.tar#{}"]), st.integers(1, 9))),
    most=st.integers(1, 12),
    most_files=st.integers(1, 12),
    most_of_tar=st.integers(1, 12),
    cut=st.integers(0, 30),
)
def test_ranges_end_between_tars_where_they_can(runs, most, most_files, most_of_tar, cut):
    paths = [path.format(number) for path, count in runs for number in range(count)]
    chunks = [pa.array(part, pa.string()) for part in (paths[:cut], paths[cut:])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefetching, "MOST_FILES", most_files)
        patch.setattr(prefetching, "MOST_OF_TAR", most_of_tar)
        blocks = [range(*ends) for ends in ranges(pa.chunked_array(chunks), most)]
    assert [row for block in blocks for row in block] == list(range(len(paths)))
    tars = [path.rpartition("#")[0] for path in paths]
    tar_starts = [row for row in range(len(paths)) if not row or not tars[row] or tars[row] != tars[row - 1]]
    for block in blocks:
        of_one_tar = tars[block[0]] and len({tars[row] for row in block}) == 1
        assert 1 <= len(block) <= min(most, max(most_files, most_of_tar) if of_one_tar else most_files)
        end = block[-1] + 1
        if end < len(paths):
            after = next((row for row in tar_starts if row > end), len(paths))
            if end not in tar_starts:  # the block ends within a tar, which is too large
                assert of_one_tar and len(block) == min(most, most_of_tar)
            else:  # the next photo, or the next tar, would not fit
                assert after - block[0] > min(most, most_files)


def test_photos_are_read_ahead_with_two_requests_each(s3):
    bucket = s3.bucket("read-ahead")
    uris = [f"{bucket}/{number}.jpg" for number in range(60)]
    written = [uri.encode() * 100 for uri in uris]
    written[7] = b"x" * (READ_AHEAD + 1)
    written[9] = b""
    assert not any(storage.parallel_map(lambda pair: files.write_bytes(*pair), zip(uris, written, strict=True)))
    s3.faults(latency=0.05)
    assert outcomes(uris) == dict(enumerate(written))
    counts = s3.faults()
    assert counts["most"] >= 20
    assert counts["GET"] == 59 and counts["HEAD"] == 62  # what is large, and what is empty, is opened again


def test_a_photo_that_cannot_be_read_says_so_in_its_turn(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    found = outcomes([f"{tmp_path}/a", f"{tmp_path}/none", str(tmp_path), f"{tmp_path}/a"])
    assert found[0] == found[3] == b"1" == photos.read(f"{tmp_path}/a")
    assert found[1].startswith("FileNotFoundError") and "is not a regular file" in found[2]
    assert list(prefetch([])) == []


@pytest.mark.parametrize("place", ["{}", "file://{}", "s3"])
def test_files_in_tars_are_read_in_the_order_of_the_tar(tmp_path, s3, place, monkeypatch):
    monkeypatch.setattr(tars, "PIECE", 2**15)
    contents = {f"ü {number}.jpg": bytes([number]) * (number * 997) for number in range(40)}
    packed(tmp_path / "a.tar", contents | {"large": bytes(10**6), "last": b"1"})
    packed(tmp_path / "b.tar", {"x": b"x"})
    top = s3.bucket("prefetch-tars") if place == "s3" else place.format(tmp_path)
    if place == "s3":
        for name in ("a.tar", "b.tar"):
            files.write_bytes(f"{top}/{name}", (tmp_path / name).read_bytes())
    names = [*reversed(contents), "none", "last", "ü 3.jpg"]
    uris = [files.join(top, f"a.tar#{name}") for name in names]
    uris[5:5] = [files.join(top, "b.tar#x"), files.join(top, "b.tar"), files.join(top, "none.tar#x")]
    found = outcomes(uris)
    everything = contents | {"last": b"1", "none": "FileNotFoundError: the tar has no file 'none'"}
    expected = [everything[name] for name in names]
    expected[5:5] = [b"x", (tmp_path / "b.tar").read_bytes(), found[7]]
    assert found == dict(enumerate(expected)) and found[7].startswith("FileNotFoundError")
    for position, uri in enumerate(uris):
        if isinstance(expected[position], bytes):
            assert photos.read(uri) == expected[position]
        else:
            with pytest.raises(FileNotFoundError):
                photos.read(uri)


def test_a_tar_in_a_store_is_read_once(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "PIECE", 2**16)
    contents = {f"{number}.jpg": bytes([number]) * 9000 for number in range(100)}
    uri = f"{s3.bucket('once')}/a.tar"
    files.write_bytes(uri, packed(tmp_path / "a.tar", contents).read_bytes())
    uris = [f"{uri}#{name}" for name in contents]
    s3.faults(latency=0.02)
    assert list(outcomes(uris).values()) == list(contents.values())
    counts = s3.faults()
    assert counts["GET"] <= files.info(uri).size // tars.PIECE + 1 and counts["HEAD"] == 1
    assert counts["most"] > 1
    assert [info.size for info in files.infos(uris)] == [files.info(uri).size] * 100
    assert s3.faults()["HEAD"] == 3


def test_what_stands_before_a_fault_is_read(tmp_path):
    contents = {f"{number}.jpg": bytes([number]) * 2000 for number in range(6)}
    path = packed(tmp_path / "a.tar", contents)
    content = bytearray(path.read_bytes())
    members = list(tars.members(str(path)))
    uris = [f"{path}#{name}" for name in contents]
    whole = dict(enumerate(contents.values()))

    path.write_bytes(content[: members[3].offset + 700])
    cut = f"BrokenTar: the tar is cut off at byte {members[3].offset + 700:,}"
    in_middle = "BrokenTar: the tar is cut off after 700 of the 2,000 bytes of this file"
    assert outcomes(uris) == whole | {3: in_middle, 4: cut, 5: cut}
    for position, uri in enumerate(uris):
        if position < 3:
            assert photos.read(uri) == whole[position]
        else:
            with pytest.raises(tars.BrokenTar, match="cut off"):
                photos.read(uri)

    content[members[3].offset - 400] ^= 1
    path.write_bytes(content)
    broken = f"BrokenTar: the tar is broken at byte {members[3].offset - 512:,}"
    assert outcomes(uris) == whole | dict.fromkeys((3, 4, 5), broken)


def test_a_file_in_a_tar_that_is_too_large(tmp_path, monkeypatch):
    path = packed(tmp_path / "a.tar", {"a": b"1", "b": bytes(1000)})
    monkeypatch.setattr(tars.Member, "__init__", lambda self, name, offset, size: self.__dict__.update(
        name=name, offset=offset, size=size if size == 1 else LIMITS.bytes + 1))  # fmt: skip
    found = outcomes([f"{path}#a", f"{path}#b"])
    assert found[0] == b"1" and found[1] == "DecodeError: the file has 268,435,457 bytes; the limit is 268,435,456"
    for check in (photos.read, photos.opens):
        with pytest.raises(DecodeError, match="268,435,457 bytes"):
            check(f"{path}#b")


def test_headers_of_files_in_tars_are_checked(tmp_path, demo):
    photo = Path(sorted(demo.rglob("*.jpg"))[0]).read_bytes()
    path = packed(tmp_path / "a.tar", {"good": photo, "bad": b"x" * 100})
    reasons = photos.unreadable([f"{path}#{name}" for name in ("good", "bad", "none")], photos.opens)
    assert reasons.keys() == {1, 2} and reasons[2] == photos.MISSING
