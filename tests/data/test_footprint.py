"""What decoding takes stays below what the header says, and a photo that would take too much is refused before."""

import functools
import io

import numpy as np
import pytest
from PIL import Image

from dim.data import footprint
from dim.data.decode import DecodeError, Limits, check_header, decode, needed

WIDTH, HEIGHT = 1500, 1000
SIDEWAYS = Image.Exif()
SIDEWAYS[0x112] = 6
ONE_STRIP = {"compression": "tiff_deflate", "strip_size": 2**30}

# name → mode, format, options of Pillow's.
KINDS = {
    "jpeg": ("RGB", "JPEG", {}),
    "jpeg grey": ("L", "JPEG", {"exif": SIDEWAYS}),
    "jpeg sideways": ("RGB", "JPEG", {"exif": SIDEWAYS}),
    "jpeg cmyk sideways": ("CMYK", "JPEG", {"exif": SIDEWAYS}),
    "jpeg progressive": ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
    "jpeg progressive cmyk": ("CMYK", "JPEG", {"progressive": True, "subsampling": 0, "exif": SIDEWAYS}),
    "png": ("RGB", "PNG", {}),
    "png alpha": ("RGBA", "PNG", {}),
    "png grey alpha": ("LA", "PNG", {"exif": SIDEWAYS}),
    "png palette": ("P", "PNG", {"exif": SIDEWAYS}),
    "png palette transparent": ("P", "PNG", {"transparency": 3, "exif": SIDEWAYS}),
    "png 16-bit": ("I;16", "PNG", {"exif": SIDEWAYS}),
    "png 1-bit": ("1", "PNG", {"exif": SIDEWAYS}),
    "png animated": ("RGBA", "PNG", {"save_all": True, "animated": True}),
    "webp": ("RGB", "WEBP", {"method": 0, "exif": SIDEWAYS}),
    "webp lossless": ("RGB", "WEBP", {"method": 0, "lossless": True, "quality": 0}),
    "webp lossless alpha": ("RGBA", "WEBP", {"method": 0, "lossless": True, "quality": 0, "exif": SIDEWAYS}),
    "webp animated alpha": ("RGBA", "WEBP", {"method": 0, "save_all": True, "animated": True}),
    "avif": ("RGB", "AVIF", {"speed": 10, "subsampling": "4:4:4", "exif": SIDEWAYS}),
    "avif alpha": ("RGBA", "AVIF", {"speed": 10, "subsampling": "4:4:4"}),
    "avif grey": ("L", "AVIF", {"speed": 10}),
    "jpeg2000": ("RGB", "JPEG2000", {"quality_layers": [40]}),
    "jpeg2000 alpha": ("RGBA", "JPEG2000", {"quality_layers": [40]}),
    "jpeg2000 16-bit": ("I;16", "JPEG2000", {"quality_layers": [40]}),
    "jpeg2000 tiles": ("RGB", "JPEG2000", {"quality_layers": [40], "tile_size": (256, 256)}),
    "tiff": ("RGB", "TIFF", {"exif": SIDEWAYS}),
    "tiff alpha": ("RGBA", "TIFF", ONE_STRIP | {"exif": SIDEWAYS}),
    "tiff one strip": ("RGB", "TIFF", ONE_STRIP),
    "tiff cmyk": ("CMYK", "TIFF", {"compression": "tiff_lzw"}),
    "tiff jpeg": ("RGB", "TIFF", {"compression": "jpeg"}),
    "tiff 16-bit": ("I;16", "TIFF", ONE_STRIP),
    "gif": ("P", "GIF", {}),
    "gif transparent": ("P", "GIF", {"transparency": 3}),
    "bmp": ("RGB", "BMP", {}),
    "bmp alpha": ("RGBA", "BMP", {}),
    "ppm": ("RGB", "PPM", {}),
    "ppm 16-bit": ("I;16", "PPM", {}),
}


def pattern(mode):
    """A photo of `mode` that compresses as photos do."""
    steps = np.add.outer(np.arange(HEIGHT) // 8, np.arange(WIDTH) // 8).astype(np.uint8) % 64
    noise = np.random.default_rng(0).integers(0, 40, (HEIGHT, WIDTH, 4), np.uint8)
    colours = steps[..., None] * np.array([1, 2, 3, 3], np.uint8) + noise
    if mode == "I;16":
        return Image.fromarray(colours[..., 0].astype(np.uint16) * 257)
    if mode == "1":
        return Image.fromarray(colours[..., 0]).convert("1")
    if mode == "P":
        indexed = Image.fromarray(colours[..., 0])
        indexed.putpalette(bytes(range(256)) * 3)
        return indexed
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.fromarray(colours[..., :bands].squeeze(), mode) if bands > 1 else Image.fromarray(colours[..., 0])


@functools.cache
def made(name):
    """The file of the kind `name`."""
    mode, form, options = KINDS[name]
    options, photo, file = dict(options), pattern(mode), io.BytesIO()
    if options.pop("animated", False):
        options["append_images"] = [Image.eval(photo, lambda value: 255 - value)]
    photo.save(file, form, **options)
    return file.getvalue()


ROOM = 6 * 2**20  # what the measured process itself may take on the way


@pytest.fixture(scope="module")
def taken(tmp_path_factory, measured):
    """name of a kind → what its decoding needs and takes."""
    folder = tmp_path_factory.mktemp("kinds")
    for number, name in enumerate(KINDS):
        (folder / str(number)).write_bytes(made(name))
    paths = [folder / str(number) for number in range(len(KINDS))]
    return dict(zip(KINDS, measured(paths), strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_no_more_is_taken_than_was_estimated(taken, name):
    about = taken[name]
    assert "error" not in about
    assert about["taken"] <= about["needed"] - footprint._BESIDE + ROOM
    assert about["needed"] <= 6 * about["taken"], "an estimate that says nothing"


@pytest.mark.parametrize("name", ["avif alpha", "webp lossless alpha", "jpeg2000 alpha"])
@pytest.mark.parametrize(
    "call",
    [
        lambda content, limits: decode(content, 32, "squash", limits=limits),
        lambda content, limits: needed(content, 32, "squash", limits=limits),
        lambda content, limits: check_header(io.BytesIO(content), limits),
    ],
    ids=["decode", "needed", "check_header"],
)
def test_refused_by_every_way_that_opens_a_photo(name, call):
    content, pixels = made(name), WIDTH * HEIGHT
    call(content, Limits(pixels=2 * pixels))
    with pytest.raises(DecodeError, match=r"may take .* GiB of memory; the limit is"):
        call(content, Limits(pixels=pixels, bytes=len(content)))


def test_a_photo_of_the_largest_size_is_not_refused():
    assert footprint.estimated(Image.new("RGBA", (1000, 1000)), 2**20) <= footprint.most(10**6, 2**20)


def test_several_scans_are_told_from_one():
    """Where they aren't progressive, by the first scan's header, which names fewer bands than the photo has."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    content = file.getvalue()
    place = content.index(b"\xff\xda")
    parted = content[:place] + bytes.fromhex("ffda 0008 01 0100 003f00") + content[place + 14 :]

    def bytes_a_pixel(content):
        with Image.open(io.BytesIO(content)) as image:
            return (footprint.estimated(image, 0) - footprint._BESIDE) / 64**2

    assert (bytes_a_pixel(content), bytes_a_pixel(parted)) == (8, 10)


def test_what_is_asked_for_counts():
    content = made("png 1-bit")
    assert needed(content, 10_000, "squash") > 10_000**2 * 11
