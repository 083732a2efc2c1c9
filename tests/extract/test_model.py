"""`dim.Model`: whatever form a photo has, it gets the descriptor that extract.py stores for its file."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageCms

import dim
from dim.data import manifest as manifests
from dim.errors import UserError
from dim.extract import descriptors, identity
from dim.io import tables
from dim.model.spec import SHIPPED_WEIGHTS, Spec
from dim.model.whitening import Whitening

SETTINGS = {"scales": (1.0, 0.7071), "precision": "float32"}


def colours(height, width, bands):
    return np.random.default_rng(height + bands).integers(0, 256, (height, width, bands), dtype=np.uint8)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("photos")


@pytest.fixture(scope="module")
def paths(folder):
    """Photos of which each needs more than to be decoded: to be turned, converted, laid on white, or resized."""
    blocks = Image.fromarray(np.kron(colours(6, 9, 3), np.ones((16, 16, 1), np.uint8)))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    blocks.save(folder / "plain.jpg", icc_profile=lab)
    blocks.save(folder / "sideways.jpg", exif=exif(6))
    blocks.save(folder / "mirrored.tif", exif=exif(2))
    blocks.save(folder / "turned.webp", exif=exif(3))
    blocks.convert("CMYK").save(folder / "inks.jpg")
    blocks.quantize(8).save(folder / "palette.png", transparency=3)
    Image.fromarray(colours(50, 40, 4)).save(folder / "alpha.png")
    Image.fromarray(np.arange(60 * 70, dtype=np.uint16).reshape(60, 70) * 15).save(folder / "deep.png")
    Image.fromarray(colours(20, 300, 3)).save(folder / "wide.bmp")
    return sorted(path for path in folder.iterdir() if path.is_file())


@pytest.fixture(scope="module")
def whitening(folder, paths, network_folder):
    file = str(folder / "whitening.npz")
    random = np.random.default_rng(0)
    projection = np.linalg.qr(random.standard_normal((512, 512)))[0][:16]
    Whitening(random.standard_normal(512) / 50, projection, np.ones(512), 0.25, "pca", {}, None).save(file)
    return file


@pytest.fixture(scope="module")
def network_folder(folder, paths):
    """A model that was made for photos with a longer side of 48 pixels."""
    from dim.model import network

    spec = Spec(layer="block4_pool", image_size=48, resize="long-side")
    network.save(network.build(spec, "float32", str(SHIPPED_WEIGHTS)), spec, str(folder / "model"))
    return str(folder / "model")


@pytest.fixture(scope="module")
def model(network_folder, whitening):
    return dim.Model(network_folder, whitening=whitening, **SETTINGS)


@pytest.mark.usefixtures("ray_session")
def test_the_descriptors_are_those_of_extract(model, network_folder, whitening, paths, tmp_path):
    from dim.extract.config import ExtractConfig
    from dim.extract.job import extract

    table = pa.table({"image_id": [path.stem for path in paths], "path": list(map(str, paths))})
    tables.write(str(tmp_path / "photos.csv"), table)
    out = str(tmp_path / "out")
    named = {"manifest": str(tmp_path / "photos.csv"), "model": network_folder, "whitening": whitening, "out": out}
    extract(ExtractConfig(**named, **SETTINGS))
    assert model.embedding == identity.of_folder(out)
    expected = descriptors.read(out, manifests.read(str(tmp_path / "photos.csv"))).vectors
    found = model.embed(paths)
    assert (found.shape, found.dtype, model.dimension) == ((len(paths), 16), np.float32, 16)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    differences = np.abs(expected[:, None] - expected).max(axis=2)
    assert differences[~np.eye(len(paths), dtype=bool)].min() > 1e-3  # no photo can pass for another


def test_an_image_in_memory_is_its_file(model, paths):
    expected = model.embed(paths)
    np.testing.assert_allclose(model.embed(Image.open(path) for path in paths), expected, atol=2e-5)
    opened = [Image.open(path) for path in paths]
    for image in opened:
        image.load()
    np.testing.assert_allclose(model.embed(opened), expected, atol=2e-5)


def test_an_array_is_its_lossless_file(model):
    pixels = np.stack([colours(70, 90, 3), 255 - colours(70, 90, 3)])
    content = io.BytesIO()
    Image.fromarray(pixels[0]).save(content, "PNG")
    expected = model.embed([Image.open(content), Image.fromarray(pixels[1])])
    np.testing.assert_allclose(model.embed(pixels), expected, atol=2e-5)
    np.testing.assert_allclose(model.embed(pixels[0]), expected[:1], atol=2e-5)
    np.testing.assert_allclose(model.embed([pixels[0][:, ::-1][:, ::-1]]), expected[:1], atol=2e-5)


def test_a_single_photo_and_no_photo(model, paths):
    expected = model.embed(paths)
    np.testing.assert_allclose(model.embed(str(paths[2])), expected[2:3], atol=2e-5)
    np.testing.assert_allclose(model.embed(paths[2].as_uri()), expected[2:3], atol=2e-5)
    assert model.embed([]).shape == (0, 16)


def test_an_image_stays_as_it_was(model):
    image = Image.fromarray(colours(40, 50, 4))
    before = image.copy()
    model.embed(image)
    assert (image.mode, image.info, image.tobytes()) == (before.mode, before.info, before.tobytes())


@pytest.mark.parametrize(
    ("photo", "said"),
    [
        ("none.jpg", "cannot read the photo 'none.jpg': no such file"),
        (__file__, "cannot read the photo .*: no photo in a known format"),
        ("ftp://host/a.jpg", "unknown scheme 'ftp'"),
        ([3], "photo 0 is a int; give a path, a PIL image or a uint8 array"),
        (np.zeros((4, 4, 3)), r"photo 0 is an array of float64, 4 × 4 × 3; give RGB pixels, uint8 \(H, W, 3\)"),
        (np.zeros((4, 4), np.uint8), "photo 0 is an array of uint8, 4 × 4; "),
        (np.zeros((0, 4, 3), np.uint8), "photo 0 is an array of uint8, 0 × 4 × 3; "),
        ([np.zeros((4, 4, 3), np.uint8), Image.new("F", (4, 4))], "photo 1 can't be used: floating-point pixels"),
    ],
)
def test_what_is_no_photo(model, photo, said):
    with pytest.raises(UserError, match=said):
        model.embed(photo)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("vgg16-gme", {}, "unknown pooling 'gme'"),
        ("none/model", {}, "none/model"),
        ("vgg16-gem", {"image_size": 0}, "image_size .* must be a whole number from 1"),
        ("vgg16-gem", {"resize": "crop"}, "unknown resize 'crop'"),
        ("vgg16-gem", {"scales": (5,)}, "scales must be above 0 and at most 4, not 5"),
        ("vgg16-gem", {"precision": "int8"}, "unknown precision 'int8'"),
        ("vgg16-gem", {"whitening": "none.npz"}, "no whitening file 'none.npz'"),
    ],
)
def test_settings_that_cannot_be(name, settings, said):
    with pytest.raises(UserError, match=said):
        dim.Model(name, **settings)
