"""Colour profiles: colours come out as sRGB shows them, by formulas and by libvips; a broken profile is ignored."""

import io
import struct

import numpy as np
import pytest
import pyvips
import tiffs
from PIL import Image, ImageCms

from dim.data.decode import decode

Y, X = np.mgrid[0:32, 0:48]
COLOURS = (40 + 170 * np.stack([X / 47, Y / 31, (X + Y) / 78], axis=2)).astype(np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# Under D50, as profiles want them: columns are red, green and blue.
ADOBE = [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
PROPHOTO = [[0.79767, 0.13519, 0.03135], [0.28804, 0.71188, 0.00008], [0.0, 0.0, 0.82519]]
TO_SRGB = np.linalg.inv([[0.43607, 0.38515, 0.14308], [0.22249, 0.71688, 0.06062], [0.01393, 0.09708, 0.71413]])


def profile(space, tags, kind=b"mntr"):
    """An ICC profile of version 2 (ICC.1:2001-04) with these tags."""
    tags = {b"wtpt": xyz(0.9642, 1, 0.82491), b"desc": b"desc" + bytes(4) + struct.pack(">I", 1) + bytes(80)} | tags
    offset, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", offset + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    pcs = b"Lab " if b"A2B0" in tags else b"XYZ "
    head = struct.pack(">I4sI4s4s4s12s4s", offset + len(data), b"", 0x02400000, kind, space, pcs, bytes(12), b"acsp")
    head = head.ljust(68, b"\0") + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def xyz(*values):
    return b"XYZ " + bytes(4) + struct.pack(">iii", *(round(value * 65536) for value in values))


def curve(gamma):
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


def matrix_profile(columns, gamma):
    primaries = {
        name: xyz(*column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), np.transpose(columns), strict=True)
    }
    return profile(b"RGB ", primaries | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(gamma)))


def ink_profile():
    """CMYK → Lab, each ink takes away 80 of L and black all: not what comes without a profile."""
    lab = []
    for number in range(16):
        c, m, y, k = ((number >> place) & 1 for place in (3, 2, 1, 0))
        lab += [round(255 * (1 - 0.25 * (c + m + y)) * (1 - k)), 128 + 40 * (m - c), 128 + 40 * (y - m)]
    identity = bytes(range(256))
    head = (
        b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + struct.pack(">9i", *(65536 * v for v in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    )
    return profile(b"CMYK", {b"A2B0": head + 4 * identity + bytes(lab) + 3 * identity}, b"prtr")


def srgb_of(linear):
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def expected(columns, gamma, colours):
    return srgb_of((colours / 255) ** gamma @ np.transpose(columns) @ TO_SRGB.T)


def encoded(image, format, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format, **options)
    return file.getvalue()


def full(content, **options):
    return decode(content, 10_000, "long-side", **options).pixels


PROFILES = {"Adobe RGB": (ADOBE, 2.2), "ProPhoto": (PROPHOTO, 1.8), "linear": (ADOBE, 1.0)}
FORMATS = {"JPEG": {"quality": 98, "subsampling": 0}, "PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}
FORMATS["AVIF"] = {"quality": 98, "subsampling": "4:4:4"}


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("format", FORMATS)
def test_rgb(format, name):
    columns, gamma = PROFILES[name]
    content = encoded(COLOURS, format, icc_profile=matrix_profile(columns, gamma), **FORMATS[format])
    found, right = full(content), expected(columns, gamma, COLOURS)
    np.testing.assert_allclose(found.mean(axis=(0, 1)), right.mean(axis=(0, 1)), atol=1)
    if format not in ("JPEG", "AVIF"):
        np.testing.assert_allclose(found, right, atol=3)
    vips = pyvips.Image.new_from_buffer(content, "").icc_transform("srgb")
    np.testing.assert_allclose(found.mean(axis=(0, 1)), vips.numpy().mean(axis=(0, 1)), atol=2)
    assert np.abs(right - COLOURS).mean() > 4  # it matters


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("planar", [False, True])
def test_tiff_of_any_depth(bits, planar):
    samples = np.round(COLOURS / 255 * (2**bits - 1)).astype(np.int64)
    tag = (34675, 7, list(matrix_profile(PROPHOTO, 1.8)))
    found = full(tiffs.tiff(samples, bits, tiffs.RGB, planar=planar, tags=[tag]))
    np.testing.assert_allclose(found, expected(PROPHOTO, 1.8, COLOURS), atol=3)


@pytest.mark.parametrize("pixels", [COLOURS[..., 0], COLOURS[..., 0].astype(np.uint16) * 257], ids=["8", "16 bits"])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_grey(format, pixels):
    content = encoded(pixels, format, icc_profile=profile(b"GRAY", {b"kTRC": curve(1.0)}))
    right = np.repeat(srgb_of(COLOURS[..., :1] / 255), 3, axis=2)
    np.testing.assert_allclose(full(content), right, atol=3)


def test_alpha_keeps_what_it_was():
    alpha = np.broadcast_to((5 * X)[..., None], (32, 48, 1)).astype(np.uint8)
    right = expected(ADOBE, 1.0, COLOURS) * (alpha / 255) + 255 * (1 - alpha / 255)
    for format, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        photo = np.concatenate([COLOURS, alpha], axis=2)
        content = encoded(photo, format, icc_profile=matrix_profile(ADOBE, 1.0), **options)
        np.testing.assert_allclose(full(content), right, atol=4)
    grey = encoded(
        np.concatenate([COLOURS[..., :1], alpha], axis=2), "PNG", icc_profile=profile(b"GRAY", {b"kTRC": curve(1.0)})
    )
    right = srgb_of(COLOURS[..., :1] / 255) * (alpha / 255) + 255 * (1 - alpha / 255)
    np.testing.assert_allclose(full(grey), np.repeat(right, 3, axis=2), atol=4)


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_inks(format):
    ink = np.concatenate([255 - COLOURS, np.broadcast_to(X[..., None], (32, 48, 1))], axis=2).astype(np.uint8)
    options = {"quality": 98, "subsampling": 0} if format == "JPEG" else {}
    content = encoded(Image.fromarray(ink, "CMYK"), format, icc_profile=ink_profile(), **options)
    right = pyvips.Image.new_from_buffer(content, "").icc_transform("srgb", intent="perceptual").numpy()
    np.testing.assert_allclose(full(content).mean(axis=(0, 1)), right.mean(axis=(0, 1)), atol=2)
    without = full(encoded(Image.fromarray(ink, "CMYK"), format, **options))
    assert np.abs(without.astype(int) - full(content)).mean() > 10


def test_a_palette():
    image = Image.fromarray(COLOURS).quantize(64)
    content = encoded(image, "PNG", icc_profile=matrix_profile(PROPHOTO, 1.8))
    right = expected(PROPHOTO, 1.8, np.asarray(image.convert("RGB")))
    np.testing.assert_allclose(full(content), right, atol=3)


def test_a_jpeg_decoded_at_a_fraction_of_its_size():
    large = np.asarray(Image.fromarray(COLOURS).resize((1200, 800)))
    content = encoded(large, "JPEG", quality=95, icc_profile=matrix_profile(PROPHOTO, 1.8))
    one, other = (decode(content, 64, "squash", scaled=scaled).pixels for scaled in (False, True))
    np.testing.assert_allclose(other, one.astype(int), atol=3)


BROKEN = {
    "no profile": b"not a profile",
    "cut": matrix_profile(ADOBE, 1.0)[:200],
    "bytes changed": bytes(
        byte ^ (0xFF if place % 7 == 0 else 0) for place, byte in enumerate(matrix_profile(ADOBE, 1))
    ),
    "of grey": profile(b"GRAY", {b"kTRC": curve(1.0)}),
    "of inks": ink_profile(),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_profile_that_is_broken_or_of_other_colours_is_ignored(name):
    np.testing.assert_array_equal(full(encoded(COLOURS, "PNG", icc_profile=BROKEN[name])), COLOURS)


def test_colour_profiles_of_grey_photos_and_the_reverse_are_ignored():
    content = encoded(COLOURS[..., 0], "PNG", icc_profile=matrix_profile(ADOBE, 1.0))
    np.testing.assert_array_equal(full(content), np.repeat(COLOURS[..., :1], 3, axis=2))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG"])
def test_a_large_profile(format):
    """As printers have; in a JPEG it takes many segments."""
    content = encoded(COLOURS, format, icc_profile=matrix_profile(ADOBE, 1.0) + bytes(3_000_000))
    right = expected(ADOBE, 1.0, COLOURS)
    np.testing.assert_allclose(full(content).mean(axis=(0, 1)), right.mean(axis=(0, 1)), atol=2)
    beyond = encoded(COLOURS, "TIFF", icc_profile=matrix_profile(ADOBE, 1.0) + bytes(2**23))
    np.testing.assert_array_equal(full(beyond), COLOURS)


def test_what_is_srgb_is_left_as_it_is():
    np.testing.assert_array_equal(full(encoded(COLOURS, "PNG", icc_profile=SRGB)), COLOURS)
