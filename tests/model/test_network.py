"""The network as a whole: what it takes and gives, its folder, changed poolings, and weights files that are wrong."""

import json
import random
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from marks import slow
from PIL import Image

import dim.model
from dim.errors import UserError
from dim.extract.embedder import Recipe
from dim.extract.identity import embedding_of
from dim.io import seal
from dim.model import network, spec
from dim.model.pooling import POOLINGS
from dim.model.spec import SHIPPED_WEIGHTS, Source, Spec

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 48, 3), dtype=np.uint8)


def shipped(pooling: str = "gem", **changes) -> Source:
    return Source(Spec(pooling=pooling, **changes).checked("this test"), str(SHIPPED_WEIGHTS), None)


@pytest.fixture(scope="module")
def photos(demo) -> list[np.ndarray]:
    paths = sorted(demo.glob("Alpro*/0[0-3].jpg"))
    return [np.asarray(Image.open(path).convert("RGB").resize((96, 96)))[None] for path in paths]


def fitted(folder: Path, pooling: str = "gem", **changes) -> keras.Model:
    """A model folder whose every layer differs from what it starts as."""
    model = network.load(shipped(pooling, **changes))
    values = np.random.default_rng(1)
    for layer in model.layers[-5:]:
        layer.set_weights([weight + values.uniform(0, 0.5, weight.shape) for weight in layer.get_weights()])
    network.save(model, Spec(pooling=pooling, **changes), str(folder))
    return model


@pytest.mark.parametrize("pooling", POOLINGS)
def test_takes_uint8_of_any_size_and_gives_unit_vectors(pooling):
    model = network.load(shipped(pooling, layer="block5_pool", dimension=8))
    assert model.input.dtype == "uint8"
    assert (model.input_shape, model.output_shape) == ((None, None, None, 3), (None, 8))
    for size in ((32, 32), (33, 70), (96, 64)):
        found = model(np.resize(IMAGES, (2, *size, 3)))
        assert found.dtype == "float32"
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", *slow("float16")])
def test_less_precise_arithmetic_gives_almost_the_same(photos, precision):
    exact, fast = network.load(shipped()), network.load(shipped(), precision)
    assert keras.config.dtype_policy().name == "float32"
    for photo in photos:
        found = fast(photo)
        assert found.dtype == "float32"
        assert float(np.sum(exact(photo) * found)) > 0.9995


def test_loading_leaves_the_random_generator_as_it_was():
    random.seed(5)
    expected = [random.random() for _ in range(3)]
    random.seed(5)
    assert random.random() == expected[0]
    network.build(Spec())
    assert [random.random(), random.random()] == expected[1:]


@pytest.mark.parametrize(
    "changes", [{}, {"dimension": 16}, {"pooling": "rmac", "region_dimension": 24, "dimension": 16}]
)
def test_saved_folder_gives_equal_outputs(tmp_path, changes):
    model = fitted(tmp_path / "model", **changes)
    again = dim.model.load(str(tmp_path / "model"))
    np.testing.assert_array_equal(again(IMAGES), model(IMAGES))
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"model.json", "model.weights.h5"}


def test_folder_loads_where_keras_has_named_other_layers_before(tmp_path):
    model = fitted(tmp_path / "model", dimension=16)
    keras.applications.VGG16(include_top=False, weights=None)
    keras.layers.Dense(3, name="pca").build((None, 3))
    np.testing.assert_array_equal(dim.model.load(str(tmp_path / "model"))(IMAGES), model(IMAGES))


def test_a_model_that_is_written_over_another_is_never_of_both(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    model = fitted(folder, dimension=16)
    assert json.loads((folder / "model.json").read_text())["weights_sha256"] == seal.sha256_of_file(
        f"{folder}/model.weights.h5"
    )

    def dying(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):  # once the weights are written
        patch.setattr(spec, "write", dying)
        network.save(model, Spec(pooling="mac", dimension=16), str(folder))
    with pytest.raises(UserError, match=r"no model .*model': neither a folder with model.json nor a name"):
        spec.resolve(str(folder))


@pytest.mark.parametrize("pooling", ["mac", "rmac"])
def test_pooling_of_a_saved_model_can_be_changed(tmp_path, pooling):
    model = fitted(tmp_path / "model", dimension=16)
    changed = network.load(spec.resolve(str(tmp_path / "model"), pooling=pooling))
    maps = network.part(model, None, "block5_conv3")(IMAGES)
    pooled = model.get_layer("l2")(POOLINGS[pooling]()(maps))
    np.testing.assert_allclose(changed(IMAGES), model.get_layer("l2_pca")(model.get_layer("pca")(pooled)), atol=1e-6)


def test_region_whitening_goes_with_the_pooling(tmp_path):
    fitted(tmp_path / "model", "rmac", region_dimension=24, region_whitening={"learned_on": "x"})
    source = spec.resolve(str(tmp_path / "model"), pooling="gem")
    assert source.spec == Spec(pooling="gem")
    assert network.load(source).output_shape == (None, 512)


def test_pca_layer_that_no_longer_fits(tmp_path):
    fitted(tmp_path / "model", "rmac", region_dimension=24, dimension=16)
    with pytest.raises(
        UserError, match=r"'pca' was saved for rmac at .*\(24, 16\).* gem at 'block5_conv3' needs .*\(512, 16\)"
    ):
        network.load(spec.resolve(str(tmp_path / "model"), pooling="gem"))


def test_layer_of_a_saved_model_can_be_lowered_but_not_raised(tmp_path):
    model = fitted(tmp_path / "model")
    lower = network.load(spec.resolve(str(tmp_path / "model"), layer="block4_conv3"))
    maps = network.part(model, None, "block4_conv3")(IMAGES)
    np.testing.assert_allclose(lower(IMAGES), model.get_layer("l2")(model.get_layer("pooling")(maps)), atol=1e-6)
    network.save(lower, Spec(layer="block4_conv3"), str(tmp_path / "lower"))
    with pytest.raises(UserError, match="the saved model ends at layer 'block4_conv3' and has no 'block5_conv1'"):
        network.load(spec.resolve(str(tmp_path / "lower"), layer="block5_conv3"))


def test_pca_layer_can_be_added_to_a_saved_model(tmp_path):
    model = fitted(tmp_path / "model")
    source = spec.resolve(str(tmp_path / "model"), dimension=512)
    np.testing.assert_allclose(network.load(source)(IMAGES), model(IMAGES), atol=1e-6)


def write_folder(folder: Path, **changes) -> str:
    spec.write(Spec(), str(folder))
    document = json.loads((folder / "model.json").read_text()) | changes
    (folder / "model.json").write_text(
        json.dumps({name: value for name, value in document.items() if value != "absent"})
    )
    (folder / "model.weights.h5").write_bytes(b"")
    return str(folder)


def nested(levels):
    return [nested(levels - 1)] if levels else 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "vgg17"}, "unknown backbone 'vgg17' in .*; did you mean 'vgg1"),
        ({"backbone": None}, "unknown backbone 'None' in .*"),
        ({"layer": "block6"}, "unknown layer 'block6' in .*"),
        ({"layer": ["block5_pool"]}, "unknown layer .* in "),
        ({"pooling": "gemm"}, "unknown pooling 'gemm' in .*; did you mean 'gem'"),
        ({"preprocessing": "tf"}, "unknown preprocessing 'tf' in .*"),
        ({"resize": "crop"}, "unknown resize 'crop' in .*"),
        ({"image_size": 0}, "image_size in .* whole number from 1 to 65536, not 0"),
        ({"image_size": "224"}, "not '224'"),
        ({"image_size": 224.0}, "not 224.0"),
        ({"image_size": True}, "not True"),
        ({"dimension": 513}, "dimension in .* whole number from 1 to 512, not 513"),
        ({"region_dimension": 64}, "region_dimension in .* is for pooling rmac only, not gem"),
        ({"region_dimension": 64, "pooling": "rmac", "dimension": 65}, "dimension in .* from 1 to 64, not 65"),
        ({"whitening": "pca"}, "whitening in .* must be an object that has learned_on, not 'pca'"),
        ({"region_whitening": {"power": 1}}, "region_whitening in .* must be an object that has learned_on"),
        (
            {"whitening": {"learned_on": nested(900)}},
            "whitening in .* is nested more than 8 deep; make the model again",
        ),
        ({"whitening": nested(900)}, "whitening in .* must be an object that has learned_on, not "),
        ({"training": "by hand"}, "training in .* is not an object of at most 8 levels; make the model again"),
        ({"training": {"epochs": nested(900)}}, "training in .* is not an object of at most 8 levels"),
        ({"backbone": nested(900)}, "unknown backbone .* in "),
        ({"backbone": "x" * 10**6}, "unknown backbone 'xxx"),
        ({"image_size": "x" * 10**6}, "image_size in .* whole number from 1 to 65536, not 'xxx"),
        ({"x" * 10**6: 1}, "has the unknown field 'xxx"),
        ({"format_version": "x" * 10**6}, "has format version 'xxx.*xxx', this dim reads 1"),
        ({"format_version": 2}, "has format version 2, this dim reads 1; use the version of dim that wrote it"),
        ({"format_version": "absent"}, "has format version None"),
        ({"colour": "red"}, "has the unknown field 'colour'; use the version of dim that wrote it"),
        ({"backbone": "absent"}, "lacks the field 'backbone'"),
    ],
)
def test_model_json_that_is_wrong(tmp_path, changes, message):
    folder = write_folder(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        spec.resolve(folder)
    assert "model.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(("content", "message"), [("{", "is not JSON"), ("[1]", "must hold an object")])
def test_model_json_that_is_none(tmp_path, content, message):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(UserError, match=message):
        spec.resolve(str(tmp_path))


def test_how_a_network_was_trained_is_kept_and_is_no_part_of_its_identity(tmp_path):
    model = network.build(Spec())
    training = {"epochs": 3, "configuration": {"margin": 0.1}}
    for name, how in (("plain", None), ("trained", training)):
        network.save(model, Spec(), str(tmp_path / name), how)
    plain, trained = (spec.resolve(str(tmp_path / name)) for name in ("plain", "trained"))
    assert (plain.training, trained.training) == (None, training)
    assert plain.spec == trained.spec == spec.read(str(tmp_path / "trained"))
    for folder in (tmp_path / "plain", tmp_path / "trained"):  # HDF5 files differ in the times that they hold
        (folder / "model.weights.h5").write_bytes(b"the same weights")
    one, other = (replace(source, sha256=None) for source in (plain, trained))
    assert one.fingerprint() == other.fingerprint()
    assert embedding_of(Recipe(one, "float32")) == embedding_of(Recipe(other, "float32"))


def test_fields_that_may_be_absent_have_their_defaults(tmp_path):
    folder = write_folder(tmp_path, dimension="absent", whitening="absent", region_whitening="absent")
    assert spec.read(folder) == Spec()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg16", "no model 'vgg16': neither a folder with model.json nor a name such as"),
        ("vgg15-gem", "unknown backbone 'vgg15'; did you mean 'vgg1"),
        ("vgg16-gen", "unknown pooling 'gen'; did you mean 'gem'"),
        ("vgg16-gem@block5", "unknown layer 'block5' in .*"),
        ("resnet50-gem", "no weights are shipped for 'resnet50'; give --weights FILE, or imagenet"),
    ],
)
def test_names_that_are_no_model(name, message):
    with pytest.raises(UserError, match=message):
        spec.resolve(name)


def test_weights_of_a_folder_are_not_replaced(tmp_path):
    with pytest.raises(UserError, match="--weights 'random' can't replace the weights of model folder"):
        spec.resolve(write_folder(tmp_path), "random")
    with pytest.raises(UserError, match=r"no weights file '.*none\.npz'"):
        spec.resolve("vgg16-gem", str(tmp_path / "none.npz"))


def test_imagenet_without_a_network_names_the_file_and_where_to_put_it(monkeypatch, tmp_path):
    def refused(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", refused)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for backbone in ("vgg16", "resnet50", "efficientnetv2b0", "convnexttiny"):
        with pytest.raises(
            UserError, match=rf"{spec.BACKBONES[backbone].imagenet}' \(.*no route to host\).* put them into .*/models"
        ) as error:
            network.load(spec.resolve(f"{backbone}-gem", "imagenet"))
        assert "\n" not in str(error.value)
