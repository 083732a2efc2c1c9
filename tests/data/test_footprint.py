"""Decoding takes no more memory than the header says; a photo over the limit is refused; large photos take turns."""

import functools
import io
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from dim.app import memory
from dim.data import footprint
from dim.data.decode import check_header, decode, prepared
from dim.data.footprint import SMALL, turn
from dim.data.limits import BESIDE, FILE, DecodeError, Limits

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


def of_another_space():
    """A profile that is not that of sRGB: its red and green are exchanged."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = content.index(b"rXYZ"), content.index(b"gXYZ")
    content[red + 4 : red + 12], content[green + 4 : green + 12] = (
        content[green + 4 : green + 12],
        content[red + 4 : red + 12],
    )
    return bytes(content)


KINDS |= {
    "jpeg with a profile": ("RGB", "JPEG", {"icc_profile": of_another_space(), "exif": SIDEWAYS}),
    "jpeg progressive with a profile": ("RGB", "JPEG", {"progressive": True, "icc_profile": of_another_space()}),
    "png alpha with a profile": ("RGBA", "PNG", {"icc_profile": of_another_space(), "exif": SIDEWAYS}),
    "webp alpha with a profile": ("RGBA", "WEBP", {"method": 0, "icc_profile": of_another_space(), "exif": SIDEWAYS}),
}
# name → photometric, samples, bits, options of tifffile's.
TIFFS = {
    "tiff planes": ("rgb", 3, 8, {"planarconfig": "separate"}),
    "tiff planes of 16 bits": ("rgb", 3, 16, {"planarconfig": "separate", "compression": "lzw"}),
    "tiff 16-bit alpha": ("rgb", 4, 16, {"extrasamples": ["unassalpha"], "compression": "deflate"}),
    "tiff associated alpha": ("rgb", 4, 8, {"extrasamples": ["assocalpha"], "tile": (256, 256)}),
    "tiff planes of 16 bits, alpha": ("rgb", 4, 16, {"planarconfig": "separate", "extrasamples": ["assocalpha"]}),
    "tiff grey, white is zero": ("miniswhite", 1, 16, {"compression": "packbits"}),
    "tiff grey alpha": ("minisblack", 2, 16, {"planarconfig": "contig", "extrasamples": ["unassalpha"]}),
    "tiff inks of 16 bits": ("separated", 4, 16, {"planarconfig": "contig"}),
    "tiff inks and alpha": ("separated", 5, 8, {"planarconfig": "contig", "extrasamples": ["unassalpha"]}),
    "tiff lab": ("cielab", 3, 8, {}),
    "tiff jpeg ycbcr": ("ycbcr", 3, 8, {"compression": "jpeg"}),
    "tiff with a profile": ("rgb", 3, 16, {"iccprofile": of_another_space()}),
    "tiff of one strip": ("rgb", 3, 16, {"rowsperstrip": HEIGHT, "compression": "deflate", "predictor": True}),
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
    if name in TIFFS:
        photometric, samples, bits, options = TIFFS[name]
        values = np.asarray(pattern("RGBA"))[..., [0, 1, 2, 3, 0][:samples]].astype(f"uint{bits}")
        if options.get("planarconfig") == "separate":
            values = np.moveaxis(values, 2, 0)
        file = io.BytesIO()
        tifffile.imwrite(file, values.squeeze(), photometric=photometric, **options)
        return file.getvalue()
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
    names = [*KINDS, *TIFFS]
    for number, name in enumerate(names):
        (folder / str(number)).write_bytes(made(name))
    return dict(zip(names, measured([folder / str(number) for number in range(len(names))]), strict=True))


@pytest.mark.parametrize("name", [*KINDS, *TIFFS])
def test_no_more_is_taken_than_was_estimated(taken, name):
    about = taken[name]
    assert "error" not in about
    assert about["taken"] <= about["needed"] - BESIDE + ROOM
    assert about["needed"] <= 6 * about["taken"], "an estimate that says nothing"


@pytest.mark.parametrize("name", ["avif alpha", "webp lossless alpha", "jpeg2000 alpha"])
@pytest.mark.parametrize(
    "call",
    [
        lambda content, limits: decode(content, 32, "squash", limits=limits),
        lambda content, limits: prepared(content, 32, "squash", limits=limits).memory,
        lambda content, limits: check_header(io.BytesIO(content), limits),
    ],
    ids=["decode", "prepared", "check_header"],
)
def test_refused_by_every_way_that_opens_a_photo(name, call):
    content, pixels = made(name), WIDTH * HEIGHT
    call(content, Limits(pixels=2 * pixels))
    small = Limits(pixels=pixels, bytes=len(content))
    with pytest.raises(DecodeError, match=r"may take .* GiB of memory; the limit is .* GiB; --max-megapixels") as error:
        call(content, small)
    allowed = int(re.search(r"--max-megapixels (\d+)", str(error.value))[1])
    call(content, Limits(pixels=allowed * 10**6, bytes=small.bytes))


def test_a_photo_of_the_largest_size_is_not_refused():
    assert footprint.of_image(Image.new("RGBA", (1000, 1000)), 2**20) <= Limits(10**6, 2**20).memory


def test_what_is_asked_for_counts():
    content = made("png 1-bit")
    assert prepared(content, 10_000, "squash").memory > 10_000**2 * 11


# Turns, among all threads and processes.


@pytest.fixture
def own_turns(monkeypatch, tmp_path):
    monkeypatch.setenv("DIM_SCRATCH", str(tmp_path))


def at_once(needed, limits, count=6):
    """How many of `count` threads, each with a photo, have their turn at one time."""
    lock, inside, seen = threading.Lock(), [], []

    def decoding(number):
        with turn(needed, limits):
            with lock:
                inside.append(number)
                seen.append(len(inside))
            time.sleep(0.05)
            with lock:
                inside.remove(number)

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(decoding, range(count)))
    assert len(seen) == count
    return max(seen)


@pytest.mark.usefixtures("own_turns")
@pytest.mark.parametrize(
    ("size", "node", "cores", "expected"),
    [(64, None, 8, 4), (64, None, 2, 2), (4, None, 8, 1), (64, 16, 8, 1), (64, 32, 8, 2), (64, 640, 8, 4)],
)
def test_as_many_as_half_the_memory_and_the_cores_allow(monkeypatch, size, node, cores, expected):
    monkeypatch.setattr(memory, "machine", lambda: size * SMALL)
    monkeypatch.setattr(footprint.os, "cpu_count", lambda: cores)
    limits = Limits(pixels=0, bytes=(8 * SMALL - BESIDE) // FILE, node=node and node * SMALL)
    assert limits.memory == 8 * SMALL
    assert limits.at_once == max(1, min(size, node or size) // 16)
    assert at_once(SMALL + 1, limits) <= expected


@pytest.mark.usefixtures("own_turns")
def test_small_photos_wait_for_nobody(monkeypatch):
    monkeypatch.setattr(memory, "machine", lambda: 1)
    with turn(SMALL + 1, Limits()):
        for _ in range(3):
            with turn(SMALL, Limits()):
                pass


@pytest.mark.usefixtures("own_turns")
def test_other_processes_count_until_they_die(monkeypatch):
    monkeypatch.setattr(memory, "machine", lambda: 1)
    program = f"""if True:
        import time
        from dim.app import memory
        from dim.data import footprint
        memory.machine = lambda: 1
        with footprint.turn({SMALL + 1}, footprint.Limits()):
            print("mine", flush=True)
            time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "mine\n"
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(at_once, SMALL + 1, Limits(), 1)
            time.sleep(0.3)
            assert not waiting.done()
            other.send_signal(signal.SIGKILL)
            assert waiting.result(timeout=60) == 1


@pytest.mark.parametrize("text", ["1048576\n", "max\n"])
def test_a_container_has_less_memory_than_its_machine(tmp_path, monkeypatch, text):
    monkeypatch.setattr(memory, "_LIMITS", (str(tmp_path / "none"),))
    machine = memory.machine()
    assert machine > 2**28
    (tmp_path / "limit").write_text(text)
    monkeypatch.setattr(memory, "_LIMITS", (str(tmp_path / "none"), str(tmp_path / "limit")))
    assert memory.machine() == (machine if text == "max\n" else 2**20)
