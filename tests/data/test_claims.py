"""Small files that claim much are refused before memory is given to them, or their claim counts."""

import io
import struct
import zlib

import pytest
from PIL import Image

from dim.data.limits import LIMITS


def lossless_webp(width, height):
    """A WebP of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "WEBP", lossless=True)
    content = bytearray(file.getvalue())
    flags = struct.unpack_from("<I", content, 21)[0] >> 28 << 28
    struct.pack_into("<I", content, 21, flags | (height - 1) << 14 | (width - 1))
    return bytes(content)


def tiff_of_tiles(side, rows=None):
    """A photo of 32 × 32 pixels in a tile of `side` × `side`, of which `rows` are there, or all."""
    data = zlib.compress(bytes((rows or side) * side * 3))
    tags = {256: 32, 257: 32, 258: 0, 259: 8, 262: 2, 277: 3, 322: side, 323: side, 324: 0, 325: len(data)}
    start = 8 + 2 + 12 * len(tags) + 4
    values = {258: struct.pack("<HHII", 258, 3, 3, start), 324: struct.pack("<HHII", 324, 4, 1, start + 8)}
    entries = b"".join(values.get(tag, struct.pack("<HHII", tag, 4, 1, value)) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head + struct.pack("<HHHH", 8, 8, 8, 0) + data


@pytest.mark.parametrize(
    ("name", "content"),
    [("WEBP", lossless_webp(13_300, 13_300)), ("TIFF", tiff_of_tiles(40_000, rows=1))],
    ids=["a canvas", "a tile"],
)
def test_a_small_file_that_takes_much_is_refused_before(tmp_path, measured, name, content):
    assert len(content) < 2_000_000
    (tmp_path / "photo").write_bytes(content)
    [about] = measured([tmp_path / "photo"])
    assert about["error"].startswith(f"decoding {name} of ")
    assert f"GiB of memory; the limit is {LIMITS.memory / 2**30:.1f} GiB; --max-megapixels " in about["error"]
    assert about["taken"] < 2**26


def jpeg2000_of_tiles(mode, box=b""):
    """A photo of 255 × 255 pixels, each of which is a tile; `box` stands before the one of the codestream."""
    file = io.BytesIO()
    Image.new(mode, (64, 64)).save(file, "JPEG2000", no_jp2=not box)
    content = bytearray(file.getvalue())
    siz = content.index(b"\xff\x4f\xff\x51") + 8
    struct.pack_into(">II", content, siz, 255, 255)
    struct.pack_into(">II", content, siz + 16, 1, 1)
    if box:
        content[siz - 16 : siz - 16] = box
        size = content.index(b"ihdr") + 4
        struct.pack_into(">II", content, size, 255, 255)
    return bytes(content)


UUID_BOX = struct.pack(">I4s", 40, b"uuid") + b"\xff\x4f\xff\x51" * 8  # as a codestream begins, and is none


@pytest.mark.parametrize(
    "content",
    [tiff_of_tiles(8_000), jpeg2000_of_tiles("L"), jpeg2000_of_tiles("RGBA"), jpeg2000_of_tiles("RGB", UUID_BOX)],
    ids=["TIFF", "JPEG 2000 grey", "JPEG 2000 alpha", "JPEG 2000 in boxes"],
)
def test_tiles_count_as_they_are_decoded(tmp_path, measured, content):
    (tmp_path / "photo").write_bytes(content)
    [about] = measured([tmp_path / "photo"])
    assert 2**27 < about["taken"] <= about["needed"] < 4 * about["taken"]


def unfolding(form):
    """A photo whose EXIF has 500 fields that all name the same megabyte."""
    start, block = 8 + 2 + 12 * 500 + 4, 10**6
    fields = b"".join(struct.pack("<HHII", 40_000 + number, 7, block, start) for number in range(500))
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 500) + fields + bytes(4 + block)
    file = io.BytesIO()
    Image.new("RGB", (40, 40)).save(file, form, **({} if form == "JPEG" else {"exif": exif}))
    content = file.getvalue()
    if form == "JPEG":  # in as many segments as it takes
        parts = [b"Exif\0\0" + exif[at : at + 65_000] for at in range(6, len(exif), 65_000)]
        segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
        content = content[:2] + segments + content[2:]
    return content


def png_of_texts():
    """A PNG of 54 kB, 54 MB of text in it."""
    file = io.BytesIO()
    Image.new("RGB", (40, 40)).save(file, "PNG")
    head, rest = file.getvalue()[:33], file.getvalue()[33:]
    text = b"k\0\0" + zlib.compress(bytes(900_000), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    return head + chunk * 60 + rest


@pytest.mark.parametrize(
    "content",
    [
        *map(unfolding, ("PNG", "JPEG", "WEBP")),
        png_of_texts(),
        b"P3\n13000 13000\n255\n1",
        b"P6\n13000 13000\n255\n1",
    ],
    ids=["PNG", "JPEG", "WebP", "text", "plain PPM", "PPM"],
)
def test_what_unfolds_beside_the_pixels_stays_small(tmp_path, measured, content):
    (tmp_path / "photo").write_bytes(content)
    [about] = measured([tmp_path / "photo"])
    assert about["taken"] < 2**27
