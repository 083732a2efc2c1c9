"""whiten.py --model: the whitening as a layer of the network equals the whitening of what the network gives."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from marks import slow
from PIL import Image

import dim.model
from dim.data import manifest as manifests
from dim.data.decode import decode
from dim.errors import UserError
from dim.evaluate import descriptor_sets
from dim.extract import descriptors
from dim.extract.embedder import Recipe
from dim.extract.identity import embedding_of
from dim.io import files
from dim.model import network, spec, whitening
from dim.model.pooling import region_maxima
from dim.whiten import fit
from dim.whiten.config import WhitenConfig
from dim.whiten.fit import fit_pca
from dim.whiten.job import whiten

SIZE = 64


@pytest.fixture(scope="module")
def photos(tmp_path_factory, demo) -> str:
    """A manifest of 24 demo photos of 8 products, every other one cropped, and of one that is broken."""
    folder = tmp_path_factory.mktemp("photos")
    rows = ["image_id,path,label,split", "broken,broken.png,broken,train"]
    (folder / "broken.png").write_bytes(b"no photo")
    paths = [path for product in sorted(demo.iterdir())[:8] for path in sorted(product.glob("0[0-2].jpg"))]
    for number, path in enumerate(paths):
        with Image.open(path) as photo:
            photo.crop((0, 0, photo.width, photo.height // (1 + number % 2))).save(folder / f"{number}.png")
        rows.append(f"{number},{number}.png,{path.parent.name},train")
    (folder / "photos.csv").write_text("\n".join(rows) + "\n")
    return str(folder / "photos.csv")


def config(photos: str, out: Path, **changes) -> WhitenConfig:
    how = {"precision": "float32", "image_size": SIZE, "batch_size": 4, "dimension": 16}
    return WhitenConfig(**{"manifest": photos, "out": str(out), **how} | changes)


def decoded(photos: str, resize: str) -> list[np.ndarray]:
    paths = manifests.read(photos).paths[1:]
    return [decode(files.read_bytes(path), SIZE, resize).pixels[None] for path in paths]


@pytest.fixture(scope="module")
def out(ray_session, photos, tmp_path_factory) -> Path:
    """A model with a PCA layer, and beside it the descriptors that it was fitted on."""
    folder = tmp_path_factory.mktemp("whitened") / "model"
    result = whiten(config(photos, folder, model="vgg16-gem"))
    assert (result["kind"], result["rows"], result["dimension"], result["model"]) == ("pca", 24, 16, str(folder))
    return folder


@pytest.mark.parametrize("kind", ["learned", *slow("pca")])
def test_model_equals_extraction_and_whitening(out, photos, tmp_path, kind):
    if kind != "pca":  # takes the descriptors that the PCA was fitted to
        whiten(config(photos, out, model="vgg16-gem", kind=kind))
    whiten(config(photos, tmp_path / "w.npz", descriptors=str(out / "descriptors"), kind=kind))
    fitted = whitening.load(str(tmp_path / "w.npz"))
    embedded = descriptors.read(str(out / "descriptors"), manifests.read(photos))
    expected = fitted.apply(embedded.vectors)
    model = dim.model.load(str(out))
    found = np.concatenate([model(image) for image in decoded(photos, "squash")])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    about = {"kind": kind, "power": fitted.power, "learned_on": fitted.learned_on}
    assert spec.read(str(out)) == spec.Spec(image_size=SIZE, dimension=16, whitening=about)
    assert json.loads((out / "run.json").read_text())["job"] == "whiten"


def naive_rmac(maps: np.ndarray, fitted: whitening.Whitening) -> np.ndarray:
    total = np.zeros(len(fitted.projection))
    for region in np.array(region_maxima(maps))[0]:
        whitened = fitted.projection @ (region / np.linalg.norm(region) - fitted.mean)
        total += whitened / np.linalg.norm(whitened)
    return total / np.linalg.norm(total)


@pytest.mark.slow
def test_regions_are_whitened_as_in_a_loop_over_all_of_them(ray_session, photos, tmp_path):
    out = tmp_path / "model"
    result = whiten(config(photos, out, model="vgg16-rmac", resize="long-side", regions=True, power=0.5))
    images = decoded(photos, "long-side")
    assert len({image.shape for image in images}) > 1
    plain = network.load(spec.resolve("vgg16-rmac"))
    maps = [network.part(plain, None, "block5_conv3")(image).numpy() for image in images]
    regions = np.concatenate([np.array(region_maxima(each))[0] for each in maps])
    fitted = fit_pca(fit.moments_of(regions / np.linalg.norm(regions, axis=1, keepdims=True)), 16, {}, power=0.5)
    assert (result["rows"], result["dimension"], result["power"]) == (len(regions), 16, 0.5)

    model = dim.model.load(str(out))
    found = np.concatenate([model(image) for image in images])
    np.testing.assert_allclose(found, [naive_rmac(each, fitted) for each in maps], atol=1e-5)
    saved = spec.read(str(out))
    assert (saved.pooling, saved.region_dimension, saved.dimension, saved.resize) == ("rmac", 16, None, "long-side")
    assert saved.region_whitening["learned_on"] == {"manifest": photos, "split": "train", "rows": len(regions)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "vgg16-gem", "regions": True}, "--regions is for pooling rmac, not gem"),
        ({"model": "vgg16-gem", "dimension": 513}, "dimension in --dimension 513 must be .* from 1 to 512"),
        ({"model": "vgg16-rmac", "regions": True, "kind": "learned"}, "--regions needs --model and --kind pca"),
        ({"model": "vgg16-gem", "scales": (1.0, 0.5)}, "--scales: the whitening in a model sees one scale at a time"),
        ({"model": "vgg16-gem", "split": "val"}, "has no row with split 'val'"),
        ({"model": "vgg16-gen"}, "unknown pooling 'gen'"),
    ],
)
def test_what_can_not_be_is_refused_and_nothing_written(photos, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        whiten(config(photos, tmp_path / "model", **changes))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({"dimension": 16}, {}, "has a PCA layer already; name a model without one"),
        ({"pooling": "rmac", "dimension": 16}, {"regions": True}, "has a PCA layer already"),
        ({"pooling": "rmac", "region_dimension": 16}, {"regions": True}, "regions of .* are whitened already"),
    ],
)
def test_models_that_are_whitened_already(photos, tmp_path, changes, flags, message):
    spec.write(spec.Spec(**changes), str(tmp_path))
    h5py.File(tmp_path / "model.weights.h5", "w").close()
    with pytest.raises(UserError, match=message):
        whiten(config(photos, tmp_path / "out", model=str(tmp_path), **flags))


def test_a_model_of_another_job_is_not_overwritten(photos, tmp_path):
    spec.write(spec.Spec(), str(tmp_path))
    with pytest.raises(UserError, match=r"holds a model that whiten\.py did not make"):
        whiten(config(photos, tmp_path, model="vgg16-gem"))


def test_an_evaluation_says_what_regions_were_whitened_on(tmp_path):
    about = {"kind": "pca", "power": 0.5, "learned_on": {"split": "train"}}
    layer = {**about, "power": 0.25}
    saved = spec.Spec(pooling="rmac", region_dimension=16, region_whitening=about, dimension=8, whitening=layer)
    spec.write(saved, str(tmp_path))
    h5py.File(tmp_path / "model.weights.h5", "w").close()
    for pooling, expected in (("rmac", [{"by": "regions", **about}]), ("gem", [])):
        recipe = Recipe(spec.resolve(str(tmp_path), pooling=pooling), "float32")
        record = {"job": "extract", "inputs": {"model": str(tmp_path)}, "embedding": embedding_of(recipe).as_json()}
        (tmp_path / "run.json").write_text(json.dumps(record))
        assert descriptor_sets.whitenings_of(str(tmp_path), None) == [*expected, {"by": "model", **layer}]
