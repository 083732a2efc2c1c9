"""The ONNX graph gives the same descriptors as the Keras network, for every pooling and each kind of backbone."""

import keras
import numpy as np
import pytest
from marks import slow
from networks import SIZES, images, trained

from dim.errors import UserError
from dim.model.backbones import BACKBONES
from dim.model.spec import Source, Spec

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture
def both(monkeypatch):
    """The descriptors of photos by ONNX Runtime and by Keras, for each of `several` sizes."""
    from dim.export import onnx_graph

    def run(spec, *several):
        model = trained(spec)
        monkeypatch.setattr(onnx_graph.network, "load", lambda _: model)
        made = onnx_graph.model_of(Source(spec, "random", None)).SerializeToString()
        session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
        expected = [model(images, training=False).numpy() for images in several]
        keras.backend.clear_session()
        found = [session.run(["descriptors"], {"images": images})[0] for images in several]
        return list(zip(found, expected, strict=True))

    return run


@pytest.mark.parametrize(
    "spec",
    [
        Spec(pooling="gem", image_size=64, dimension=16),
        Spec(pooling="mac", image_size=64, layer="block5_pool", preprocessing="unit"),
        Spec(pooling="rmac", image_size=112, region_dimension=8, dimension=4),
        *slow(
            Spec(pooling="spoc", image_size=64, layer="block4_conv3"),
            Spec(pooling="spoc-prior", image_size=80),
            Spec(pooling="crow", image_size=64),
            Spec(pooling="rmac", image_size=64),
            *(
                Spec(backbone=name, layer=next(iter(BACKBONES[name].layers)),
                     preprocessing=BACKBONES[name].preprocessing, image_size=64)
                for name in ("vgg19", "resnet50", "efficientnetv2b0")
            ),
        ),
    ],
    ids=lambda spec: f"{spec.backbone}-{spec.pooling}@{spec.layer}",
)  # fmt: skip
def test_descriptors_are_equal(both, spec):
    ((found, expected),) = both(spec, images(spec.image_size, spec.image_size))
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "gem"},
        {"pooling": "rmac", "region_dimension": 8},
        *slow(
            {"pooling": "mac"}, {"pooling": "spoc"}, {"pooling": "spoc-prior"}, {"pooling": "crow"}, {"pooling": "rmac"}
        ),
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_photos_of_any_size(both, options):
    spec = Spec(resize="long-side", layer="block4_conv3", **options)
    for found, expected in both(spec, *(images(*size) for size in SIZES)):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_what_can_not_be_exported():
    from dim.export import onnx_graph

    spec = Spec(backbone="convnexttiny", layer="layer_normalization")
    with pytest.raises(UserError, match="convnexttiny is not exported to ONNX: its layer"):
        onnx_graph.model_of(Source(spec, "random", None))
