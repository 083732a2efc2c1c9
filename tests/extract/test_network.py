"""Descriptors of the real network equal those of an independent implementation, and do not depend on the batches."""

import io
import itertools
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from dim.data import manifest as manifests
from dim.data.decode import decode
from dim.errors import UserError
from dim.extract import descriptors
from dim.extract.embedder import Embedder, Recipe
from dim.io import tables
from dim.model import spec


def one_by_one(recipe, paths):
    """The descriptors of the photos at `paths`, each on its own."""
    embedder = Embedder(recipe, batch_size=1)
    known = recipe.source.spec
    images = [decode(Path(path).read_bytes(), known.image_size, known.resize).pixels for path in paths]
    return np.concatenate([embedder.embed([image]) for image in images])


def test_as_an_independent_implementation(shared):
    photos = manifests.read(str(shared("data/instances/manifest.csv")))
    recipe = Recipe(spec.resolve("vgg16-gem@block5_conv3"), "float32")
    with np.load(shared("oracle/offtheshelf_descriptors.npz")) as arrays:
        ids, expected = arrays["image_id"], arrays["gem_block5_conv3"]
    path = dict(zip(photos.image_ids, photos.paths, strict=True))
    images = [decode(Path(path[image_id]).read_bytes(), 224, "squash").pixels for image_id in ids]
    found = Embedder(recipe, batch_size=16).embed(images)
    cosines = (found * expected).sum(axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.9999


@pytest.mark.slow
def test_photos_of_several_shapes_as_each_alone(ray_session, demo, tmp_path):
    from dim.extract.config import ExtractConfig
    from dim.extract.job import extract

    shapes = itertools.cycle([(224, 224), (224, 150), (120, 200)])
    table = tables.read(str(demo / "manifest.csv")).slice(0, 12)
    paths = [str(tmp_path / f"{row}.png") for row in range(12)]
    for name, path, (width, height) in zip(table["path"].to_pylist(), paths, shapes, strict=False):
        Image.open(demo / name).crop((0, 0, width, height)).save(path)
    Path(paths[7]).write_bytes(b"no photo")
    tables.write(str(tmp_path / "photos.csv"), table.set_column(1, "path", [paths]))
    out = str(tmp_path / "out")
    extract(
        ExtractConfig(
            manifest=str(tmp_path / "photos.csv"),
            model="vgg16-gem",
            out=out,
            image_size=96,
            resize="long-side",
            scales=(1.0, 0.5),
            precision="float32",
            batch_size=5,
        )
    )
    found = descriptors.read(out, manifests.read(str(tmp_path / "photos.csv")))
    assert found.rows.tolist() == [row for row in range(12) if row != 7]
    recipe = Recipe(spec.resolve("vgg16-gem", image_size=96, resize="long-side"), "float32", (1.0, 0.5))
    expected = one_by_one(recipe, [paths[row] for row in found.rows])
    np.testing.assert_allclose(found.vectors, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)


def larger(path):
    """The photo at `path` at three times its size, as a JPEG."""
    photo = Image.open(path)
    file = io.BytesIO()
    photo.resize((3 * photo.width, 3 * photo.height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def test_photos_decoded_at_a_fraction_of_their_size_keep_their_descriptors(demo):
    recipe = Recipe(spec.resolve("vgg16-gem", image_size=48), "float32")
    photos = [path.read_bytes() for path in sorted(Path(sklearn.datasets.__file__).parent.glob("images/*.jpg"))]
    assert len(photos) == 2  # of 640 × 427 pixels
    photos += [larger(path) for path in sorted(demo.glob("*/00.jpg"))]
    images = {scaled: [decode(photo, 48, "squash", scaled=scaled).pixels for photo in photos] for scaled in (0, 1)}
    assert all((full != fraction).any() for full, fraction in zip(*images.values(), strict=True))
    full, fraction = (Embedder(recipe, batch_size=16).embed(batch) for batch in images.values())
    assert (full * fraction).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_shapes_are_kept_apart_and_their_order_kept(batch_size):
    from dim.extract.embedder import batches

    random = np.random.default_rng(0)
    images = [
        np.full((32, width, 3), number % 256, np.uint8) for number, width in enumerate(random.choice([32, 40], 20))
    ]
    seen = {}
    for rows, batch in batches(images, batch_size):
        assert len(rows) == len(batch) <= batch_size
        seen |= dict(zip(rows, batch, strict=True))
    assert sorted(seen) == list(range(20))
    assert all(np.array_equal(seen[row], image) for row, image in enumerate(images))


@pytest.mark.slow
def test_weights_that_are_replaced_before_the_workers_load_them_end_the_job(ray_session, demo, tmp_path, monkeypatch):
    from dim.extract import pipeline
    from dim.extract.config import ExtractConfig
    from dim.extract.job import extract

    table = tables.read(str(demo / "manifest.csv")).slice(0, 4)
    paths = [str(demo / name) for name in table["path"].to_pylist()]
    tables.write(str(tmp_path / "photos.csv"), table.set_column(1, "path", [paths]))
    weights, run = tmp_path / "weights.npz", pipeline.run
    shutil.copy(spec.SHIPPED_WEIGHTS, weights)

    def replaced(*arguments):
        with zipfile.ZipFile(weights, "a") as archive:  # sound, and another
            archive.writestr("more.npy", b"")
        return run(*arguments)

    monkeypatch.setattr(pipeline, "run", replaced)
    config = {"manifest": str(tmp_path / "photos.csv"), "model": "vgg16-gem", "out": str(tmp_path / "out")}
    with pytest.raises(
        UserError, match=r"weights\.npz' changed while this job ran; run the same command again"
    ) as said:
        extract(ExtractConfig(**config, weights=str(weights), image_size=32, precision="float32"))
    assert "\n" not in str(said.value)
    assert not (tmp_path / "out").exists()
