"""What a file holds beside its pixels: crops, end markers, further pages, thumbnails, and why none can be decoded."""

import io
import lzma
import struct
import threading

import numpy as np
import pytest
import pyvips
import tiffs
from PIL import Image, UnidentifiedImageError

from dim.data.decode import check_header, decode
from dim.data.limits import DecodeError, Limits, of_megapixels
from dim.errors import UserError

COLOURS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
Y, X = np.mgrid[0:64, 0:96]
SMOOTH = (255 * np.stack([X / 95, Y / 63, (X + Y) / 158], axis=2)).astype(np.uint8)


def encoded(pixels, format, **options):
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, format, **options)
    return file.getvalue()


def full(content):
    return decode(content, 10_000, "long-side").pixels


def reason(content, limits=None):
    with pytest.raises(DecodeError) as error:
        decode(content, 224, "long-side", **({"limits": limits} if limits else {}))
    assert "\n" not in str(error.value)
    return str(error.value)


# AVIF: ISO/IEC 14496-12, 8.11, and 23008-12, 6.5.


def box(kind, *parts):
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def avif(pixels, *properties, brands=b"avif\0\0\0\0avifmif1miaf", version=0, wide=False):
    """An AVIF of `pixels` with more `properties` (boxes); `version` and `wide` are forms of its tables."""
    made = encoded(pixels, "AVIF", quality=95)
    start = made.index(b"av1C") - 4
    coded = made[start : start + int.from_bytes(made[start : start + 4])]
    data = made[made.index(b"mdat") + 4 :]
    number = ">I" if version else ">H"
    kept = [box(b"ispe", struct.pack(">III", 0, pixels.shape[1], pixels.shape[0])), coded, *properties]
    used = [place | (0x8000 if wide else 0x80) for place in range(1, len(kept) + 1)]
    links = struct.pack(f">{len(used)}{'H' if wide else 'B'}", *used)
    table = struct.pack(">I", version << 24 | wide) + struct.pack(">I", 1) + struct.pack(number, 1)
    ipma = box(b"ipma", table, bytes([len(used)]), links)

    def meta(offset):
        return box(
            b"meta",
            bytes(4),
            box(b"hdlr", bytes(8), b"pict", bytes(13)),
            box(b"pitm", struct.pack(">I", version << 24), struct.pack(number, 1)),
            box(b"iloc", bytes(4), b"\x44\0", struct.pack(">HHHHII", 1, 1, 0, 1, offset, len(data))),
            box(
                b"iinf", bytes(4), struct.pack(">H", 1), box(b"infe", b"\2\0\0\0", struct.pack(">HH", 1, 0), b"av01\0")
            ),
            box(b"iprp", box(b"ipco", *kept), ipma),
        )

    head = box(b"ftyp", brands)
    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", data)


def clap(width, height, right, down):
    """A clean aperture: each a fraction of two numbers."""
    return box(b"clap", struct.pack(">8i", *width, *height, *right, *down))


@pytest.mark.parametrize(
    ("aperture", "kept"),
    [
        (clap((50, 1), (40, 1), (0, 1), (0, 1)), (23, 12, 73, 52)),
        (clap((50, 1), (40, 1), (-23, 1), (12, 1)), (0, 24, 50, 64)),
        (clap((100, 2), (80, 2), (46, 2), (-24, 2)), (46, 0, 96, 40)),
        (clap((33, 1), (41, 1), (0, 1), (0, 1)), (31, 11, 64, 52)),  # between two pixels: as libheif rounds
        (clap((50, 1), (40, 1), (40, 1), (0, 1)), (63, 12, 96, 52)),  # partly outside
        (clap((50, 1), (40, 1), (900, 1), (0, 1)), (0, 0, 96, 64)),  # wholly: no crop
        (clap((50, 0), (40, 1), (0, 1), (0, 1)), (0, 0, 96, 64)),
    ],
)
@pytest.mark.parametrize("form", [{}, {"version": 1}, {"wide": True}], ids=["", "long numbers", "wide links"])
def test_the_clean_aperture_of_avif(aperture, kept, form):
    left, top, right, bottom = kept
    whole = full(avif(SMOOTH))
    content = avif(SMOOTH, aperture, **form)
    decoded = decode(content, 10_000, "long-side")
    assert (decoded.width, decoded.height) == (right - left, bottom - top)
    np.testing.assert_array_equal(decoded.pixels, whole[top:bottom, left:right])


def test_a_crop_comes_before_a_turn_and_a_box_after_both():
    content = avif(SMOOTH, clap((50, 1), (40, 1), (0, 1), (0, 1)), box(b"irot", b"\1"))
    upright = np.rot90(full(avif(SMOOTH))[12:52, 23:73])
    np.testing.assert_array_equal(full(content), upright)
    np.testing.assert_array_equal(decode(content, 999, "long-side", (2, 5, 40, 45)).pixels, upright[5:45, 2:40])
    seen = pyvips.Image.new_from_buffer(content, "").numpy()
    np.testing.assert_allclose(full(content).mean(axis=(0, 1)), seen.mean(axis=(0, 1)), atol=2)
    assert seen.shape == upright.shape


@pytest.mark.parametrize("first", [b"avif", b"mif1", b"miaf", b"MA1B", b"none"])
@pytest.mark.parametrize("others", [b"avifmif1", b"mif1miaf"])
def test_the_brands_of_avif(first, others):
    content = avif(SMOOTH, brands=first + bytes(4) + others)
    np.testing.assert_array_equal(full(content), full(avif(SMOOTH)))


def test_an_avif_whose_alpha_has_no_size():
    rgba = np.dstack([SMOOTH, (2 * X).astype(np.uint8)])
    content = encoded(rgba, "AVIF", quality=95)
    place = content.index(b"ipma") + 4 + 8  # one entry for the picture, then one for its alpha
    place += 3 + content[place + 2] + 3
    kinds = list(content[place : place + 2])
    assert kinds == [1, 5]  # ispe, which both share, and pixi
    lacking = content[:place] + bytes([kinds[1], kinds[1]]) + content[place + 2 :]
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(lacking), formats=["AVIF"])
    np.testing.assert_array_equal(full(lacking), full(content))


# JPEG without its end marker.

JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "grey": {"mode": "L"},
    "restarts": {"restart_marker_blocks": 3},
    "inks": {"mode": "CMYK"},
}


def jpeg(name):
    options = dict(JPEGS[name])
    return encoded(Image.fromarray(SMOOTH).convert(options.pop("mode", "RGB")), "JPEG", quality=90, **options)


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("lacking", [1, 2])
def test_a_jpeg_that_lacks_its_end_marker_only(name, lacking):
    content = jpeg(name)
    np.testing.assert_array_equal(full(content[:-lacking]), full(content))
    scaled = [decode(photo, 32, "squash", scaled=True).pixels for photo in (content, content[:-lacking])]
    np.testing.assert_array_equal(*scaled)


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("lacking", [8, 40, 0.5])
def test_a_jpeg_that_lacks_rows_or_scans_is_an_error(name, lacking):
    content = jpeg(name)
    cut = content[: -lacking if lacking > 1 else len(content) // 2]
    assert "truncated" in reason(cut)


def test_a_progressive_jpeg_that_lacks_whole_scans_is_an_error():
    content = jpeg("progressive")
    for start in [place for place in range(len(content)) if content[place : place + 2] == b"\xff\xda"][1:]:
        assert "truncated" in reason(content[:start])


@pytest.mark.parametrize("code", [1, 5, 7, 8, 32773, 34925, 50001])
def test_a_tiff_that_lacks_rows_is_an_error(code):
    raw = COLOURS.tobytes()
    pieces = {1: raw, 7: encoded(COLOURS, "JPEG"), 34925: lzma.compress(raw), 50001: encoded(COLOURS, "WEBP")}
    piece = pieces[code] if code in pieces else tiffs.COMPRESSIONS[code](raw)
    kind = tiffs.YCBCR if code == 7 else tiffs.RGB
    assert full(tiffs.assembled([piece], (60, 40), [8] * 3, kind, compression=code)).shape == (40, 60, 3)
    for cut in (len(piece) // 2, len(piece) - 700):
        reason(tiffs.assembled([piece[:cut]], (60, 40), [8] * 3, kind, compression=code))
        reason(tiffs.assembled([piece, piece[:cut]], (60, 80), [8] * 3, kind, rows_per_strip=40, compression=code))


# Raw files, HEIC, and kinds that no decoder knows.


def thumbnail_first(photometric=tiffs.RGB, **options):
    return tiffs.tiff(COLOURS[:8, :8].astype(int), 8, photometric, tags=[(254, 4, [1])], **options)


RAW = {
    "a thumbnail first": thumbnail_first(),
    "big-endian": thumbnail_first(order=">"),
    "BigTIFF": thumbnail_first(big=True),
    "DNG": tiffs.tiff(COLOURS.astype(int), 8, tiffs.RGB, tags=[(50706, 7, [1, 4, 0, 0])]),
    "colour filters": tiffs.tiff(COLOURS[..., :1].astype(int), 8, 32803),
    "Canon, CR2": b"II*\0\x10\0\0\0CR\2\0" + bytes(200),
    "Canon, CR3": box(b"ftyp", b"crx \0\0\0\1crx isom") + bytes(200),
    "Fujifilm": b"FUJIFILMCCD-RAW 0201" + bytes(200),
    "Panasonic": b"IIU\0" + bytes(200),
    "Olympus": b"IIRO" + bytes(200),
}


@pytest.mark.parametrize("name", RAW)
def test_a_raw_file_is_told(name):
    assert reason(RAW[name]) == "a camera raw file; export it as JPEG"
    with pytest.raises(DecodeError, match="a camera raw file"):
        check_header(io.BytesIO(RAW[name]))


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"heim"])
def test_heic_is_named(brand):
    for brands in (brand + bytes(4) + b"mif1" + brand, b"mif1" + bytes(4) + b"mif1" + brand):
        content = box(b"ftyp", brands) + bytes(500)
        assert reason(content) == "an HEIC photo, which dim can't decode; convert it to JPEG"
    without_brand = avif(SMOOTH, brands=b"mif1\0\0\0\0miaf").replace(b"av01", b"hvc1")
    assert "an HEIC photo" in reason(without_brand)


UNKNOWN = {
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(40), "a kind of PNG that dim can't decode: broken PNG file"),
    "BMP": (b"BM" + struct.pack("<IIII", 99, 0, 54, 77) + bytes(99), "a kind of BMP .*: Unsupported BMP header type"),
    "PPM": (b"P6 3 x 255\n" + bytes(99), "a kind of PPM .*: invalid literal"),
    "JPEG": (b"\xff\xd8\xff\xc0\0\x11\x0c\0\x20\0\x20\3" + bytes(99), "12-bit"),
    "AVIF": (box(b"ftyp", b"avif\0\0\0\0avif") + bytes(99), "a kind of AVIF .*: "),
    "TIFF of LogLuv": (tiffs.tiff(COLOURS.astype(int), 8, 32845), "photometric interpretation 32845"),
    "TIFF of other inks": (
        tiffs.tiff(COLOURS.astype(int)[..., [0, 1, 2, 0]], 8, tiffs.CMYK, tags=[(332, 3, [2])]),
        "other inks than cyan",
    ),
    "TIFF, float": (encoded(COLOURS[..., 0].astype(np.float32), "TIFF"), "floating-point pixels, whose range"),
    "TIFF, signed": (encoded(COLOURS[..., 0].astype(np.int32), "TIFF"), "signed 32-bit pixels, whose range"),
    "TIFF, codec": (tiffs.assembled([b"x"], (9, 9), [8], 1, compression=32809), "32809"),
    "TIFF, numbers": (
        tiffs.tiff(COLOURS.astype(int), 8, tiffs.RGB, tags=[(256, 4, list(range(10**6, 10**6 + 99)))]),
        "a TIFF whose imagewidth is not one number",
    ),
    "TIFF, bits": (tiffs.tiff(COLOURS.astype(int), 8, tiffs.RGB, tags=[(258, 3, [5, 6, 5])]), "TIFF"),
    "TIFF, no rows": (tiffs.tiff(COLOURS.astype(int), 8, tiffs.RGB)[:300], "the TIFF is truncated: the directory"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_kind_that_is_not_known_comes_with_the_decoders_own_reason(name):
    content, message = UNKNOWN[name]
    with pytest.raises(DecodeError, match=message):
        decode(content, 224, "long-side")


# Several frames or pages.


def mpo(thumbnail):
    content = encoded(COLOURS, "MPO", save_all=True, append_images=[Image.fromarray(255 - COLOURS)])
    start = content.index(b"MPF\0")
    place = content.index(struct.pack("<HHI", 0xB002, 7, 32), start)
    entries = start + 4 + int.from_bytes(content[place + 8 : place + 12], "little")
    kind = struct.pack("<I", 0x010001) if thumbnail else content[entries + 16 : entries + 20]
    return content[: entries + 16] + kind + content[entries + 20 :]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_several_frames_are_told(format):
    more = [Image.fromarray(255 - COLOURS)]
    several, one = (encoded(COLOURS, format, save_all=True, append_images=images) for images in (more, []))
    found = decode(several, 999, "long-side")
    assert found.several and not decode(one, 999, "long-side").several
    np.testing.assert_allclose(found.pixels, COLOURS, atol=255 if format in ("AVIF", "GIF", "WEBP") else 0)


def test_small_versions_of_the_same_photo_are_no_frames():
    assert decode(mpo(thumbnail=False), 99, "squash").several
    assert not decode(mpo(thumbnail=True), 99, "squash").several
    for further, several in ([], False), ([{}], True), ([{254: (4, [1])}], False), ([{254: (4, [4])}], False):
        content = tiffs.assembled([COLOURS.tobytes()], (60, 40), [8] * 3, tiffs.RGB, more=further)
        assert decode(content, 99, "squash").several is several


# The limit of pixels.

LARGE = Image.new("L", (400, 300))
CONTAINERS = {
    "JPEG": {}, "PNG": {}, "WEBP": {}, "TIFF": {}, "BMP": {}, "GIF": {}, "AVIF": {}, "JPEG2000": {}, "PPM": {}
}  # fmt: skip


@pytest.mark.parametrize("format", CONTAINERS)
def test_over_the_limit(monkeypatch, format):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # by which Pillow would refuse it
    content = encoded(LARGE, format)
    message = "the photo has 400 × 300 pixels; the limit is 119,999; --max-megapixels 1 allows it"
    found = []
    threads = [threading.Thread(target=lambda: found.append(reason(content, Limits(pixels=119_999)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [message] * 4

    with pytest.raises(DecodeError, match="the limit is 119,999"):
        check_header(io.BytesIO(content), Limits(pixels=119_999))
    decode(content, 64, "squash", limits=Limits(pixels=120_000))


def test_what_no_flag_allows_is_not_said_to_be_allowed():
    def claiming(width, height):
        content = encoded(LARGE, "PPM").replace(b"400 300", b"%d %d" % (width, height))
        return reason(content, Limits())

    assert claiming(100_000, 1_000_000).endswith("the limit is 178,000,000; --max-megapixels 100000 allows it")
    assert of_megapixels(100_000, None).pixels == 100_000 * 1_000_000
    assert claiming(999_999_999, 999_999_999).endswith(
        "the limit is 178,000,000; no photo is that large: the file is broken or malicious"
    )
    with pytest.raises(UserError, match="--max-megapixels must be at most 100,000, not 100001"):
        of_megapixels(100_001, None)


@pytest.mark.parametrize("options", [{"big": True}, {"tile": 16}, {"planar": True}])
def test_over_the_limit_in_any_tiff(options):
    content = tiffs.tiff(COLOURS.astype(int), 12, tiffs.RGB, **options)
    assert "60 × 40 pixels; the limit is 2,399;" in reason(content, Limits(pixels=2399))
