"""Each backbone against keras.applications: preprocessing, the layers that may be pooled, the cut, weights files."""

from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format
from marks import slow

from dim.model import network
from dim.model.backbones import BACKBONES
from dim.model.spec import Source, Spec

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
# The modules of keras.applications whose `preprocess_input` the network expects; other networks contain it.
MODULES = {"vgg16": "vgg16", "vgg19": "vgg19", "resnet50": "resnet50", "resnet101": "resnet"}


def spec_of(backbone: str, **changes) -> Spec:
    known = BACKBONES[backbone]
    fields = {"layer": next(iter(known.layers)), "pooling": "mac", "preprocessing": known.preprocessing} | changes
    return Spec(backbone, **fields).checked("this test")


def reference(backbone: str) -> keras.Model:
    """The network of keras.applications as it is distributed, with random weights."""
    return getattr(keras.applications, BACKBONES[backbone].constructor)(include_top=False, weights=None)


def randomised(model: keras.Model) -> keras.Model:
    """`model` with other random weights, also where they begin at 0 or 1."""
    random = np.random.default_rng(1)
    for variable in model.weights:
        if variable.dtype == "float32":
            variable.assign(variable.numpy() + random.uniform(0, 0.05, variable.shape))
    return model


def maps_of(model: keras.Model, layers: list[str], images: np.ndarray) -> list[np.ndarray]:
    # ConvNeXt's last layer is numbered by how many the process has made.
    pooled = [model.layers[-1 if name == "layer_normalization" else names(model).index(name)] for name in layers]
    found = keras.Model(model.input, [layer.output for layer in pooled])(images, training=False)
    return [maps.numpy() for maps in keras.tree.flatten(found)]


def names(model: keras.Model) -> list[str]:
    return [layer.name for layer in model.layers]


# A network of each family; the others have the same kinds of layers.
TRIED = ("vgg16", "resnet50", "convnexttiny")


@pytest.fixture(scope="module", params=[*TRIED, *slow(*[name for name in BACKBONES if name not in TRIED])])
def built(request) -> tuple[str, keras.Model]:
    """A backbone's name and its network up to the highest layer that may be pooled."""
    layer = "block5_pool" if request.param.startswith("vgg") else spec_of(request.param).layer
    return request.param, network.build(spec_of(request.param, layer=layer, dimension=16))


def test_equals_keras_applications(built):
    backbone, model = built
    known, original = BACKBONES[backbone], randomised(reference(backbone))
    network.part(model, None, model.layers[-5].name).set_weights(original.get_weights())
    x = IMAGES.astype(np.float32)
    if backbone in MODULES:
        x = getattr(keras.applications, MODULES[backbone]).preprocess_input(x.copy())
    expected = maps_of(original, list(known.layers), x)
    found = [network.part(model, None, layer)(IMAGES, training=False).numpy() for layer in known.layers]
    assert [maps.shape[-1] for maps in found] == list(known.layers.values())
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def test_is_cut_at_the_tail(built):
    backbone, model = built
    tail = BACKBONES[backbone].tail
    trunk, head = network.part(model, None, tail), network.part(model, tail, None)
    np.testing.assert_allclose(head(trunk(IMAGES)), model(IMAGES), atol=1e-6)
    trained, frozen = ({id(v) for v in part.trainable_variables} for part in (head, trunk))
    assert not trained & frozen
    assert trained | frozen == {id(v) for v in model.trainable_variables}
    assert len(trained) > 2, "only the PCA layer is above the tail"


def test_names_and_random_weights_are_the_same_each_time():
    for backbone in ("efficientnetv2b0", "convnexttiny"):
        one, other = (network.build(spec_of(backbone)) for _ in range(2))
        assert names(one) == names(other)
        assert {"preprocess", "pooling", "l2"} < set(names(one))
        for mine, yours in zip(one.weights, other.weights, strict=True):
            np.testing.assert_array_equal(mine, yours)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "files"),
    # Some of ConvNeXt's arrays have no names, so that an .npz of them would not say which is which.
    [("efficientnetv2b0", ["notop.h5", "saved.weights.h5", "arrays.npz"]), ("convnexttiny", ["notop.h5"])],
)
def test_weights_files_of_all_kinds(backbone, files, tmp_path):
    original = randomised(reference(backbone))
    (expected,) = maps_of(original, [spec_of(backbone).layer], IMAGES)
    write_legacy(original, tmp_path / "notop.h5")
    original.save_weights(tmp_path / "saved.weights.h5")
    named = {f"{layer.name}/{v.name}": v.numpy() for layer in original.layers for v in layer.weights}
    np.savez(tmp_path / "arrays.npz", **named)
    for name in files:
        model = network.load(Source(spec_of(backbone), str(tmp_path / name), None))
        found = network.part(model, None, spec_of(backbone).layer)(IMAGES, training=False)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def write_legacy(model: keras.Model, path: Path) -> None:
    """As keras.applications distributes weights."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
