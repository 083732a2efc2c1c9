"""Every kind of file that photos come in: modes, depths, layouts, containers, orientations.

Each file is written here, by its format's specification, from pixels that are known; and libvips, where it reads the
kind, has to see the same picture.
"""

import io
import lzma
import struct
import zlib

import numpy as np
import pytest
import pyvips
import tiffs
from PIL import ExifTags, Image

from dim.data.decode import decode

HEIGHT, WIDTH = 32, 48
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH]
# Five smooth ramps, 0 to 1: three colours, black or alpha, alpha.
RAMPS = np.stack([X / X.max(), Y / Y.max(), (X + Y) / (X + Y).max(), 1 - X / X.max(), Y / Y.max()], axis=2)
COLOURS = np.round(255 * RAMPS[..., :3]).astype(np.uint8)
PALE = 64 + COLOURS // 2  # which 8 bits of Lab tell apart


def full(content):
    return decode(content, 10_000, "long-side").pixels


def whole(ramps, bits):
    return np.round(ramps * (2**bits - 1)).astype(np.int64)


def on_white(colours, alpha):
    return 255 * (colours * alpha + 1 - alpha)


# TIFF: the colours (H, W, 3), 0 to 1, of samples (H, W, S), 0 to 1.


def ycbcr_to_rgb(samples):
    y, cb, cr = samples[..., 0], samples[..., 1] - 128 / 255, samples[..., 2] - 128 / 255
    return np.clip(np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=2), 0, 1)


def to_lab(rgb):
    """sRGB (IEC 61966-2-1), 0 to 1 → CIE Lab under D50, by Bradford's adaptation."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
    xyz = linear @ np.array(matrix).T / [0.96422, 1, 0.82521]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=2)


def lab_samples(bits, photometric):
    lab = to_lab(PALE / 255)
    scale = 2 ** (bits - 8)
    if photometric == tiffs.CIELAB:
        values = [lab[..., 0] / 100 * (2**bits - 1), lab[..., 1] * scale % 2**bits, lab[..., 2] * scale % 2**bits]
    else:
        values = [lab[..., 0] / 100 * 255 * scale, (lab[..., 1] + 128) * scale, (lab[..., 2] + 128) * scale]
    return np.floor(np.stack(values, axis=2) + 0.5).astype(np.int64) % 2**bits


PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3)) * 257
LAYOUTS = {
    "strips": {},
    "big-endian planes": {"order": ">", "planar": True},
    "tiled BigTIFF, LZW": {"tile": 16, "big": True, "compression": 5},
    "big-endian BigTIFF, deflate": {"order": ">", "big": True, "compression": 8, "tags": [(274, 3, [1])]},
    "tiled planes, packbits": {"tile": 16, "planar": True, "compression": 32773},
}
KINDS = {
    "white is zero": (tiffs.GREY_INVERTED, 1, (), lambda s: np.repeat(1 - s, 3, axis=2)),
    "black is zero": (tiffs.GREY, 1, (), lambda s: np.repeat(s, 3, axis=2)),
    "RGB": (tiffs.RGB, 3, (), lambda s: s),
    "CMYK": (tiffs.CMYK, 4, (), lambda s: (1 - s[..., :3]) * (1 - s[..., 3:])),
    "YCbCr": (tiffs.YCBCR, 3, (), ycbcr_to_rgb),
    "grey, alpha": (tiffs.GREY, 2, (2,), lambda s: np.repeat(s[..., :1], 3, axis=2)),
    "white is zero, alpha": (tiffs.GREY_INVERTED, 2, (2,), lambda s: np.repeat(1 - s[..., :1], 3, axis=2)),
    "RGB, alpha": (tiffs.RGB, 4, (2,), lambda s: s[..., :3]),
    "RGB, unused, alpha": (tiffs.RGB, 5, (0, 2), lambda s: s[..., :3]),
    "RGB, unused": (tiffs.RGB, 4, (0,), lambda s: s[..., :3]),
    "CMYK, alpha": (tiffs.CMYK, 5, (2,), lambda s: (1 - s[..., :3]) * (1 - s[..., 3:4])),
}


def kinds_of_tiff():
    """Name → file, the picture (H, W, 3) of 0 to 255, whether libvips reads it as TIFF 6.0 says."""
    for kind, (photometric, count, extra, colours) in KINDS.items():
        for bits in (1, 2, 4, 8, 12, 16, 32):
            for layout, options in LAYOUTS.items():
                if count == 1 and options.get("planar"):
                    continue
                samples = whole(RAMPS[..., :count], bits)
                tags = [*options.get("tags", ()), *([(338, 3, list(extra))] if extra else [])]
                tags += [(530, 3, [1, 1])] if photometric == tiffs.YCBCR else []
                content = tiffs.tiff(samples, bits, photometric, **(options | {"tags": tags}))
                share = samples / (2**bits - 1)
                alpha = share[..., -1:] if 2 in extra else 1
                # libvips: no samples between 1 and 8 but grey, none between 8 and 16; a space of its own for 32 bits;
                # planes of two, or in tiles; a profile of its own for CMYK; an unused sample for alpha.
                plain = photometric in (tiffs.GREY, tiffs.GREY_INVERTED, tiffs.RGB) and 0 not in extra
                readable = bits in (8, 16) or (bits < 8 and count == 1)
                planes = options.get("planar") and (count == 2 or options.get("tile"))
                yield f"{kind}, {bits} bits, {layout}", content, on_white(colours(share), alpha), (
                    plain and readable and not planes
                )  # fmt: skip


def palettes_and_lab():
    for bits in (1, 2, 4, 8):
        for layout in ("strips", "tiled BigTIFF, LZW", "big-endian BigTIFF, deflate"):
            numbers = whole(RAMPS[..., :1], bits)
            entries = PALETTE[: 2**bits]
            options = LAYOUTS[layout] | {"tags": [(320, 3, entries.T.ravel().tolist())]}
            content = tiffs.tiff(numbers, bits, tiffs.PALETTE, **options)
            yield f"palette, {bits} bits, {layout}", content, entries[numbers[..., 0]] / 257, True
    for name, photometric in (("Lab", tiffs.CIELAB), ("ICC Lab", tiffs.ICCLAB)):
        for bits in (8, 16):
            for layout, options in LAYOUTS.items():
                content = tiffs.tiff(lab_samples(bits, photometric), bits, photometric, **options)
                yield f"{name}, {bits} bits, {layout}", content, PALE, False


def ways_of_tiff():
    for bits in (8, 16):
        for count, photometric in ((2, tiffs.GREY), (4, tiffs.RGB)):
            alpha = np.clip(RAMPS[..., [4]], 0.2, 1)
            colours = np.repeat(RAMPS[..., :1], 3, axis=2) if count == 2 else RAMPS[..., :3]
            samples = whole(np.concatenate([colours[..., : count - 1] * alpha, alpha], axis=2), bits)
            content = tiffs.tiff(samples, bits, photometric, tags=[(338, 3, [1])])
            yield f"{count} samples of {bits} bits, multiplied by alpha", content, on_white(colours, alpha), True
    for bits in (8, 16):
        content = tiffs.tiff(whole(RAMPS[..., :3], bits), bits, tiffs.RGB, compression=8, predictor=True)
        yield f"differences of {bits} bits", content, 255 * RAMPS[..., :3], True
    for bits in (1, 4, 8):
        content = tiffs.tiff(whole(RAMPS[..., :1], bits), bits, tiffs.GREY, reversed_bits=True)
        expected = whole(RAMPS[..., :1], bits) * 255 / (2**bits - 1)
        yield f"low bit first, {bits} bits", content, np.repeat(expected, 3, axis=2), True
    packed = [lzma.compress(COLOURS.tobytes())]
    yield "LZMA", tiffs.assembled(packed, (WIDTH, HEIGHT), [8] * 3, tiffs.RGB, compression=34925), COLOURS, False
    for name, code in (("WEBP", 50001), ("JPEG", 7)):
        photo = [encoded(COLOURS, name, quality=95)]
        kind = tiffs.YCBCR if name == "JPEG" else tiffs.RGB
        yield f"{name} in TIFF", tiffs.assembled(photo, (WIDTH, HEIGHT), [8] * 3, kind, compression=code), COLOURS, True
    for options in ({"compression": "group3"}, {"compression": "group4"}, {"compression": "tiff_ccitt"}):
        bits = np.asarray(COLOURS[..., 0] > 99)
        expected = np.repeat(255 * bits[..., None], 3, axis=2)
        yield f"TIFF, {options}", encoded(bits, "TIFF", **options), expected, True
    yield "blocks of 2 × 2 chroma", subsampled(), ycbcr_to_rgb(chroma_of_blocks() / 255) * 255, True


def chroma_of_blocks():
    samples = np.array(Image.fromarray(COLOURS).convert("YCbCr")).astype(int)
    for plane in (1, 2):
        samples[..., plane] = samples[::2, ::2, plane].repeat(2, axis=0).repeat(2, axis=1)
    return samples


def subsampled():
    """TIFF 6.0, section 21: of each block of 2 × 2, four Y, one Cb and one Cr."""
    samples = chroma_of_blocks()
    blocks = samples.reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).transpose(0, 2, 1, 3, 4)
    luma = blocks[..., 0].reshape(HEIGHT // 2, WIDTH // 2, 4)
    data = np.concatenate([luma, blocks[:, :, 0, 0, 1:]], axis=2).astype(np.uint8).tobytes()
    return tiffs.assembled([data], (WIDTH, HEIGHT), [8] * 3, tiffs.YCBCR, tags=[(530, 3, [2, 2])])


# The other containers.


def encoded(pixels, format, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(samples, depth, kind, *chunks):
    """A PNG (W3C, third edition) of samples (H, W, S); `chunks` (name, data) go before the pixels."""
    rows = samples.reshape(len(samples), -1)
    packed = [tiffs.packed(row[None], depth, ">") for row in rows]
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in packed))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    framed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def png_cases():
    for kind, count, depths in ((0, 1, (1, 2, 4, 8, 16)), (2, 3, (8, 16)), (4, 2, (8, 16)), (6, 4, (8, 16))):
        for depth in depths:
            samples = whole(RAMPS[..., :count], depth)
            share = samples / (2**depth - 1)
            alpha = share[..., -1:] if kind >= 4 else 1
            colours = share[..., :3] if count >= 3 else np.repeat(share[..., :1], 3, axis=2)
            yield f"PNG {kind}, {depth} bits", png(samples, depth, kind), on_white(colours, alpha), True
            if kind < 4:
                key = samples[5, 7]
                alpha = ~(samples == key).all(axis=2, keepdims=True)
                chunk = b"tRNS", struct.pack(f">{count}H", *key)
                content = png(samples, depth, kind, chunk)
                yield f"PNG {kind}, {depth} bits, a colour transparent", content, on_white(colours, alpha), True
    for depth in (1, 2, 4, 8):
        numbers = whole(RAMPS[..., :1], depth)
        entries = PALETTE[: 2**depth] // 257
        alphas = np.linspace(0, 255, 2**depth).astype(np.uint8)
        for transparent in (False, True):
            chunks = [(b"PLTE", entries.astype(np.uint8).tobytes())]
            chunks += [(b"tRNS", alphas.tobytes())] if transparent else []
            alpha = alphas[numbers] / 255 if transparent else 1
            expected = on_white(entries[numbers[..., 0]] / 255, alpha)
            yield f"PNG palette, {depth} bits, {transparent}", png(numbers, depth, 3, *chunks), expected, True


def other_cases():
    alpha = np.round(255 * RAMPS[..., [4]]).astype(np.uint8)
    rgba, expected = np.concatenate([COLOURS, alpha], axis=2), on_white(RAMPS[..., :3], alpha / 255)
    grey = np.repeat(COLOURS[..., :1], 3, axis=2)
    for name, options in {
        "JPEG": {"quality": 95},
        "JPEG, 4:4:4": {"quality": 95, "subsampling": 0},
        "JPEG, RGB": {"quality": 95, "keep_rgb": True},
        "JPEG, progressive": {"quality": 95, "progressive": True},
        "WEBP": {"quality": 95},
        "WEBP, lossless": {"lossless": True},
        "JPEG2000": {},
        "JPEG2000, lossy": {"irreversible": True},
        "BMP": {},
        "AVIF, 4:2:0": {"quality": 95, "subsampling": "4:2:0"},
        "AVIF, 4:4:4": {"quality": 95, "subsampling": "4:4:4"},
        "AVIF, narrow range": {"quality": 95, "range": "limited"},
        "PPM": {},
    }.items():
        format = name.partition(",")[0]
        vips = format not in ("JPEG2000", "BMP", "PPM")  # which its wheel lacks
        yield name, encoded(COLOURS, format, **options), COLOURS, vips
        if format != "WEBP":
            yield f"{name}, grey", encoded(COLOURS[..., 0], format, **options), grey, vips and "narrow" not in name
        if format in ("WEBP", "JPEG2000", "AVIF"):
            yield f"{name}, alpha", encoded(rgba, format, **options), expected, vips
    wide = encoded((257 * COLOURS[..., 0].astype(np.uint16)), "JPEG2000")
    yield "JPEG2000, 16 bits", wide, grey, False
    for mode in ("1", "P"):
        image = Image.fromarray(COLOURS).convert(mode)
        yield f"BMP {mode}", encoded(image, "BMP"), np.asarray(image.convert("RGB")), False
        yield f"GIF {mode}", encoded(image, "GIF"), np.asarray(image.convert("RGB")), True
    cmyk = Image.fromarray(COLOURS).convert("CMYK")
    yield "JPEG, CMYK", encoded(cmyk, "JPEG", quality=95, subsampling=0), COLOURS, False
    source = pyvips.Image.new_from_memory(COLOURS.tobytes(), WIDTH, HEIGHT, 3, "uchar").copy(interpretation="srgb")
    for bits in (8, 10, 12):
        content = source.heifsave_buffer(compression="av1", bitdepth=bits, Q=95)
        yield f"AVIF, {bits} bits", content, COLOURS, True
    for top in (1, 15, 255, 1023, 65535):
        for count, plain, raw in ((1, b"P2", b"P5"), (3, b"P3", b"P6")):
            samples = np.round(RAMPS[..., :count] * top).astype(int)
            colours = np.repeat(samples, 3 // count, axis=2) * 255 / top
            header = f"\n{WIDTH} {HEIGHT}\n{top}\n".encode()
            yield (
                f"PPM, {plain}, to {top}",
                plain + header + " ".join(map(str, samples.ravel())).encode(),
                colours,
                False,
            )
            data = samples.astype(">u2" if top > 255 else "u1").tobytes()
            yield f"PPM, {raw}, to {top}", raw + header + data, colours, False


def orientation_cases():
    upright = {1: COLOURS, 2: COLOURS[:, ::-1], 3: COLOURS[::-1, ::-1], 4: COLOURS[::-1]}
    upright |= {5: COLOURS.transpose(1, 0, 2)}
    upright |= {6: upright[5][:, ::-1], 7: upright[5][::-1, ::-1], 8: upright[5][::-1]}
    for number, expected in upright.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = number
        for format, options in {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}.items():
            yield f"{format}, orientation {number}", encoded(COLOURS, format, exif=exif, **options), expected, True
        photo = pyvips.Image.new_from_memory(COLOURS.tobytes(), WIDTH, HEIGHT, 3, "uchar").copy(interpretation="srgb")
        photo.set_type(pyvips.GValue.gint_type, "orientation", number)
        content = photo.heifsave_buffer(compression="av1", Q=95)
        yield f"AVIF, orientation {number}", content, expected, True
        blocks = tiffs.tiff(whole(RAMPS[..., :3], 12), 12, tiffs.RGB, planar=True, tags=[(274, 3, [number])])
        yield f"TIFF, 12 bits, planes, orientation {number}", blocks, expected, False
        samples = np.array(Image.fromarray(COLOURS).convert("YCbCr")).astype(int)
        chroma = tiffs.tiff(samples, 8, tiffs.YCBCR, tags=[(274, 3, [number]), (530, 3, [1, 1])])
        yield f"TIFF, YCbCr, orientation {number}", chroma, expected, False


FILES = (kinds_of_tiff, palettes_and_lab, ways_of_tiff, png_cases, other_cases, orientation_cases)
CASES = {name: case for cases in FILES for name, *case in cases()}


@pytest.mark.parametrize("name", CASES)
def test_pixels(name):
    content, expected, _ = CASES[name]
    found = full(content)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.mean(axis=(0, 1)), expected.mean(axis=(0, 1)), atol=2)
    lossy = any(word in name for word in ("JPEG", "WEBP", "AVIF", "blocks"))
    np.testing.assert_allclose(found, expected, atol=16 if lossy else 9 if "Lab" in name else 3)


@pytest.mark.parametrize("name", [name for name, (_, _, vips) in CASES.items() if vips])
def test_libvips_sees_the_same(name):
    content, _, _ = CASES[name]
    image = pyvips.Image.new_from_buffer(content, "").autorot().colourspace("srgb")
    if image.hasalpha():
        image = image.flatten(background=[255] * 3)
    expected = np.broadcast_to(image.cast("uchar").numpy(), full(content).shape)
    np.testing.assert_allclose(full(content).mean(axis=(0, 1)), expected.mean(axis=(0, 1)), atol=2)
