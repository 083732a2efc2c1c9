import io
import random
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from dim.data.decode import check_header, decode, output_size
from dim.data.limits import DecodeError, Limits

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (40, 60, 3), dtype=np.uint8)  # 60 wide, 40 high
GREY = COLOURS[..., 0]


def encoded(pixels, format="PNG", mode=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, format, **options)
    return file.getvalue()


def full(content):
    """The photo at its own size."""
    return decode(content, 10_000, "long-side").pixels


def repeat(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def naive_upright(pixels, orientation):
    """EXIF 2.32, tag 274: where the file's row 0 and column 0 are in the upright photo."""
    height, width = pixels.shape[:2]
    turned = orientation >= 5
    result = np.zeros((width, height, 3) if turned else (height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            right, low = width - 1 - x, height - 1 - y
            row, column = {
                1: (y, x),
                2: (y, right),
                3: (low, right),
                4: (low, x),
                5: (x, y),
                6: (x, low),
                7: (right, low),
                8: (right, y),
            }[orientation]
            result[row, column] = pixels[y, x]
    return result


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG"])
def test_exif_orientation(format, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encoded(COLOURS, format, exif=exif)
    stored = full(encoded(COLOURS, format))
    expected = naive_upright(stored, orientation)
    decoded = decode(content, 1000, "long-side")
    assert (decoded.height, decoded.width) == expected.shape[:2]
    np.testing.assert_array_equal(decoded.pixels, expected)


def test_broken_exif_is_ignored():
    np.testing.assert_array_equal(
        full(encoded(COLOURS, "JPEG", exif=b"Exif\0\0garbage")), full(encoded(COLOURS, "JPEG"))
    )


def test_rgb_is_exact():
    np.testing.assert_array_equal(full(encoded(COLOURS)), COLOURS)


def test_grey_and_one_bit():
    np.testing.assert_array_equal(full(encoded(GREY)), repeat(GREY))
    bits = GREY > 127
    np.testing.assert_array_equal(full(encoded(bits)), repeat(np.where(bits, 255, 0)))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled(format):
    grey = np.linspace(0, 65535, 2400).astype(np.uint16).reshape(40, 60)
    np.testing.assert_array_equal(full(encoded(grey, format)), repeat(np.round(grey / 257).astype(np.uint8)))


def test_pixels_without_a_known_range():
    with pytest.raises(DecodeError, match="floating-point"):
        decode(encoded(GREY.astype(np.float32), "TIFF"), 224, "long-side")
    with pytest.raises(DecodeError, match="32-bit"):
        decode(encoded(GREY.astype(np.int32) * 1000, "TIFF"), 224, "long-side")


def test_alpha_is_laid_on_white():
    alpha = RANDOM.integers(0, 256, (40, 60, 1), dtype=np.uint8)
    expected = COLOURS * (alpha / 255) + 255 * (1 - alpha / 255)
    np.testing.assert_allclose(full(encoded(np.concatenate([COLOURS, alpha], axis=2))), expected, atol=1)
    grey = np.concatenate([GREY[..., None], alpha], axis=2)
    expected = repeat(GREY) * (alpha / 255) + 255 * (1 - alpha / 255)
    np.testing.assert_allclose(full(encoded(Image.fromarray(grey, "LA"))), expected, atol=1)


def test_colour_key_is_laid_on_white():
    content = encoded(COLOURS, transparency=tuple(int(v) for v in COLOURS[3, 5]))
    expected = COLOURS.copy()
    expected[np.equal(COLOURS, COLOURS[3, 5]).all(axis=2)] = 255
    np.testing.assert_array_equal(full(content), expected)


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palette(format):
    palette = Image.fromarray(COLOURS).quantize(16)
    expected = np.asarray(palette.convert("RGB")).copy()
    np.testing.assert_array_equal(full(encoded(palette, format)), expected)
    expected[np.asarray(palette) == 3] = 255
    np.testing.assert_array_equal(full(encoded(palette, format, transparency=3)), expected)


def test_palette_with_alpha_per_entry():
    palette = Image.fromarray(COLOURS).quantize(16)
    alphas = bytes(range(0, 256, 16))
    alpha = np.frombuffer(alphas, np.uint8)[np.asarray(palette)][..., None] / 255
    expected = np.asarray(palette.convert("RGB")) * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(full(encoded(palette, transparency=alphas)), expected, atol=1)


def test_cmyk():
    cmyk = Image.fromarray(COLOURS).convert("CMYK")
    np.testing.assert_array_equal(full(encoded(cmyk, "TIFF")), COLOURS)
    smooth = np.broadcast_to(np.linspace(0, 255, 60).astype(np.uint8)[None, :, None], (40, 60, 3))
    jpeg = encoded(Image.fromarray(smooth).convert("CMYK"), "JPEG", quality=100)
    np.testing.assert_allclose(full(jpeg), smooth, atol=4)


def test_ycck():
    # The last byte of the Adobe marker says what the components are: 0 is CMYK, 2 is YCCK, both stored inverted.
    # So a stored (Y, 128, 128, 255) is CMY = 255 - Y, inverted again Y, without black: the grey 255 - Y.
    y = np.broadcast_to(np.linspace(0, 255, 60).astype(np.uint8), (40, 60))
    stored = np.stack([y, np.full_like(y, 128), np.full_like(y, 128), np.full_like(y, 255)], axis=2)
    cmyk = encoded(Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=100)
    marker = cmyk.index(b"Adobe") + 11
    content = cmyk[:marker] + b"\x02" + cmyk[marker + 1 :]
    np.testing.assert_allclose(full(content), repeat(255 - y), atol=4)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_gives_its_first_frame(format):
    first, second = np.full((40, 60, 3), 255, np.uint8), np.zeros((40, 60, 3), np.uint8)
    content = encoded(first, format, save_all=True, append_images=[Image.fromarray(second)])
    np.testing.assert_array_equal(full(content), first)


def test_progressive_jpeg():
    np.testing.assert_array_equal(
        full(encoded(COLOURS, "JPEG", progressive=True)), full(encoded(COLOURS, "JPEG", progressive=False))
    )


@pytest.mark.parametrize("format", ["WEBP", "BMP", "JPEG2000", "AVIF"])
def test_other_formats(format):
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(format, {})
    np.testing.assert_allclose(full(encoded(COLOURS, format, **options)), COLOURS, atol=8 if format == "AVIF" else 0)


@pytest.mark.parametrize(
    ("region", "photo", "size", "resize", "expected"),
    [
        ((640, 480), (640, 480), 224, "squash", (224, 224)),
        ((640, 100), (640, 100), 224, "squash", (224, 224)),
        ((1, 1), (1, 1), 224, "squash", (224, 224)),
        ((9, 9), (9, 9), 20, "squash", (32, 32)),
        ((1, 1), (1, 1), 224, "long-side", (32, 32)),
        ((640, 480), (640, 480), 362, "long-side", (362, 272)),
        ((300, 200), (300, 200), 362, "long-side", (300, 200)),
        ((1, 20000), (1, 20000), 224, "long-side", (32, 224)),
        ((100, 50), (1000, 500), 500, "long-side", (50, 32)),
        ((100, 90), (1000, 500), 500, "long-side", (50, 45)),
    ],
)
def test_output_size(region, photo, size, resize, expected):
    assert output_size(region, photo, size, resize) == expected
    pixels = encoded(np.zeros((photo[1], photo[0]), np.uint8))
    decoded = decode(pixels, size, resize, box=(0, 0, *region))
    assert decoded.pixels.shape == (expected[1], expected[0], 3)
    assert (decoded.width, decoded.height) == photo


def test_squash_is_pillow_bilinear_of_the_whole_photo(demo):
    path = next(demo.glob("*/00.jpg"))
    expected = np.asarray(Image.open(path).convert("RGB").resize((96, 96), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decode(path.read_bytes(), 96, "squash").pixels, expected)


def smooth(width, height):
    """A photo without detail, which any way of making it smaller leaves the same."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return (255 * np.stack([x, y, (x + y) / 2], axis=2)).astype(np.uint8)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("resize", "decoded"), [("squash", [401, 601]), ("long-side", [201, 301])])
def test_a_large_jpeg_may_be_decoded_at_a_fraction_of_its_size(monkeypatch, orientation, resize, decoded):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encoded(smooth(1201, 801), "JPEG", exif=exif, quality=95)
    expected = decode(content, 64, resize)
    sizes = []
    monkeypatch.setattr(Image.Image, "resize", lambda image, *a, plain=Image.Image.resize: seen(image, sizes, plain, a))
    found = decode(content, 64, resize, scaled=True)
    assert (found.width, found.height) == (expected.width, expected.height)
    assert found.pixels.shape == expected.pixels.shape
    assert np.abs(found.pixels.astype(int) - expected.pixels).max() <= 3
    # The short side, 801, is 3 times 4 · 64: a half. With the long side at 64 it goes to 43, and is 4 times 4 · 43.
    assert sorted(sizes[0]) == decoded


def seen(image, sizes, plain, arguments):
    sizes.append(image.size)
    return plain(image, *arguments)


def test_what_is_no_large_jpeg_or_has_a_box_is_decoded_in_full():
    for content, box in (
        (encoded(smooth(600, 600), "PNG"), None),
        (encoded(smooth(300, 300), "JPEG"), None),
        (encoded(smooth(600, 600), "JPEG"), (10, 10, 590, 590)),
    ):
        found, expected = (decode(content, 64, "squash", box, scaled=scaled) for scaled in (True, False))
        np.testing.assert_array_equal(found.pixels, expected.pixels)


def test_box_is_of_the_upright_photo_rounded_and_clipped():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = encoded(COLOURS, exif=exif)
    upright = naive_upright(COLOURS, 6)  # 40 wide, 60 high
    np.testing.assert_array_equal(
        decode(content, 224, "long-side", box=(2.4, 9.6, 36.7, 55.2)).pixels, upright[10:55, 2:37]
    )
    np.testing.assert_array_equal(decode(content, 224, "long-side", box=(-5, 20, 1e9, 99)).pixels, upright[20:])


@pytest.mark.parametrize("box", [(60, 0, 90, 40), (5, 5, 5.2, 20), (-9, -9, 0, 0), (float("nan"), 0, 9, 9)])
def test_box_without_a_pixel(box):
    with pytest.raises(DecodeError):
        decode(encoded(COLOURS), 224, "long-side", box=box)


def png_header(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def bmp_header(width, height):
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("content", [png_header(60_000, 60_000), bmp_header(60_000, 60_000)], ids=["PNG", "BMP"])
def test_a_decompression_bomb_is_refused_by_its_header(content):
    for check in (lambda: decode(content, 224, "long-side"), lambda: check_header(io.BytesIO(content))):
        with pytest.raises(DecodeError, match="limit"):
            check()


def test_limits():
    with pytest.raises(DecodeError, match="60 × 40 pixels; the limit is 2,399"):
        decode(encoded(COLOURS), 224, "long-side", limits=Limits(pixels=2399))
    decode(encoded(COLOURS), 224, "long-side", limits=Limits(pixels=2400))
    with pytest.raises(DecodeError, match="bytes; the limit is 100"):
        decode(encoded(COLOURS), 224, "long-side", limits=Limits(bytes=100))


def test_only_our_limit_counts(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow would refuse all above 20
    np.testing.assert_array_equal(full(encoded(COLOURS)), COLOURS)


BROKEN = {
    "nothing": (b"", "empty"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "<!DOCTYPE"),
    "jpeg": (encoded(COLOURS, "JPEG", quality=95)[:-600], "truncated"),
    "png": (encoded(COLOURS)[:-600], None),
    "webp": (encoded(COLOURS, "WEBP")[:-100], None),
    "gif": (encoded(COLOURS, "GIF")[:-600], None),
    "tiff": (encoded(COLOURS, "TIFF", compression="tiff_lzw")[:-600], None),
    "jpeg header only": (b"\xff\xd8\xff\xe0", None),
    "postscript, which starts a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "known format"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(name):
    content, reason = BROKEN[name]
    with pytest.raises(DecodeError, match=reason) as caught:
        decode(content, 224, "long-side")
    assert "\n" not in str(caught.value)


def test_check_header(demo):
    with next(demo.glob("*/00.jpg")).open("rb") as file:
        check_header(file)
    with pytest.raises(DecodeError, match="empty"):
        check_header(io.BytesIO())


def test_any_broken_file_is_a_decode_error():
    """500 seeded mutations: bits flipped, bytes replaced, pieces cut out or off."""
    chance = random.Random(0)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    palette = Image.fromarray(COLOURS).quantize(16)
    sources = [encoded(COLOURS, format, exif=exif) for format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")]
    sources += [encoded(COLOURS, format) for format in ("BMP", "PPM", "JPEG2000")]
    sources += [encoded(palette, "GIF", transparency=3), encoded(COLOURS, "TIFF", compression="tiff_lzw")]
    sources += [encoded(COLOURS, "TIFF", compression="jpeg"), encoded(COLOURS, "JPEG", mode="CMYK", progressive=True)]
    outcomes = {"decoded": 0, "refused": 0}
    for trial in range(500):
        content = bytearray(sources[trial % len(sources)])
        for _ in range(chance.choice((1, 4, 30))):
            # Half of the changes hit the header, where the plugins' own code reads.
            position = chance.randrange(min(len(content), chance.choice((120, len(content)))))
            content[position] = chance.choice((content[position] ^ (1 << chance.randrange(8)), chance.randrange(256)))
        if chance.random() < 0.2:
            start = chance.randrange(len(content))
            del content[start : chance.choice((len(content), start + 40))]
        try:
            pixels = decode(bytes(content), 64, "long-side", limits=Limits(pixels=10**6)).pixels
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3
            outcomes["decoded"] += 1
        except DecodeError as error:
            assert str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50


def test_threads_leave_the_warning_filters_as_they_were():
    content = encoded(COLOURS, "TIFF", compression="tiff_lzw")
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [full(content) for _ in range(30)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before
