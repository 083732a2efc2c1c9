"""Members of tars: each format, archives that are cut off or broken, and object stores."""

import io
import random
import tarfile

import pytest

from dim.io import files, tars
from dim.io.tars import BrokenTar, Member

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def packed(contents, form=tarfile.GNU_FORMAT, **about):
    """A tar of these contents by name, in this format, with a folder and a link at its start."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form, **about) as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE):
            info = tarfile.TarInfo(f"other{kind.decode()}")
            info.type, info.linkname = kind, "nowhere"
            tar.addfile(info)
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def contents(count=12):
    names = [f"{'folder/' * (18 if number % 3 == 0 else 0)}ü {number}.jpg" for number in range(count)]
    return {name: bytes([number]) * (number * 171) for number, name in enumerate(names)}


def listed(uri):
    """The members, and the fault or None."""
    found = []
    try:
        for member in tars.members(str(uri)):
            found.append(member)
    except BrokenTar as error:
        return found, str(error)
    return found, None


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_and_each_place_of_a_cut(tmp_path, form):
    expected = contents()
    whole, path = packed(expected, form), tmp_path / "a.tar"
    path.write_bytes(whole)
    found, fault = listed(path)
    assert fault is None
    assert {member.name: whole[member.offset : member.offset + member.size] for member in found} == expected
    end = whole.rindex(b"\x0b") + 1  # after it come the end marks, blocks of zeros
    end += -end % tarfile.BLOCKSIZE
    for cut in [*range(0, end, 256), *range(1, end, 509)]:
        path.write_bytes(whole[:cut])
        before, fault = listed(path)
        assert fault == (f"the tar is cut off at byte {cut:,}" if cut else "the tar is empty")
        assert before == found[: len(before)]
        assert len(before) >= sum(member.offset + member.size <= cut for member in found)


def test_members_before_a_broken_header_are_found(tmp_path):
    whole = bytearray(packed(contents()))
    (tmp_path / "a.tar").write_bytes(whole)
    found, _ = listed(tmp_path / "a.tar")
    header = found[7].offset - tarfile.BLOCKSIZE
    whole[header] ^= 1  # the checksum no longer fits
    (tmp_path / "a.tar").write_bytes(whole)
    assert listed(tmp_path / "a.tar") == (found[:7], f"the tar is broken at byte {header:,}")


def test_headers_that_lie_about_sizes(tmp_path):
    path, one = tmp_path / "a.tar", packed({"a": b"x" * 600}, tarfile.USTAR_FORMAT)
    for size in (-512, -(2**40), 2**62):
        info = tarfile.TarInfo("b")
        info.size = size
        for kind in (tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_SPARSE):
            info.type = kind
            path.write_bytes(one[:2560] + info.tobuf(tarfile.GNU_FORMAT) + one)
            found, fault = listed(path)
            assert found[0] == Member("a", 1536, 600) and fault


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "the tar is empty"),
        (b"x" * 10, "the tar is cut off at byte 10"),
        (b"x" * 5000, "not a tar archive"),
        (b"\x1f\x8b" + b"x" * 5000, "a tar compressed by gzip; decompress it"),
        (b"BZh9" + b"x" * 5000, "a tar compressed by bzip2; decompress it"),
    ],
)
def test_what_is_no_tar(tmp_path, content, fault):
    (tmp_path / "a.tar").write_bytes(content)
    assert listed(tmp_path / "a.tar") == ([], fault)


def test_any_bytes_end_in_members_or_a_fault(tmp_path):
    whole, chance = packed(contents(5), tarfile.PAX_FORMAT), random.Random(0)
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(chance.choice([1, 5, 200])):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        (tmp_path / "a.tar").write_bytes(changed)
        found, _ = listed(tmp_path / "a.tar")
        assert all(isinstance(member, Member) for member in found)


def test_a_tar_in_a_store_is_read_in_large_pieces(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "PIECE", 2**16)
    small, large = {f"{number}.jpg": bytes([number]) * 9000 for number in range(100)}, {"large": bytes(10**6)}
    whole = packed(small | large | {"last": b"1"})
    uri = f"{s3.bucket('tars')}/a.tar"
    files.write_bytes(uri, whole)
    (tmp_path / "a.tar").write_bytes(whole)
    s3.faults()
    found = list(tars.members(uri))
    requests = s3.faults()["GET"]
    assert found == list(tars.members(str(tmp_path / "a.tar")))
    assert requests <= len(whole) // 2**16  # of which the large member's content would be 15
    with pytest.raises(FileNotFoundError):
        next(tars.members(f"{uri}.none"))
