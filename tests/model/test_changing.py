"""Models and whitenings that are replaced while a job uses them: what is hashed is what is loaded."""

import json

import h5py
import numpy as np
import pytest

from dim.errors import UserError
from dim.extract.config import ExtractConfig
from dim.extract.identity import embedding_of
from dim.extract.job import recipe_of
from dim.io import seal
from dim.model import spec
from dim.model.spec import Spec
from dim.model.whitening import Whitening, load


def write_weights(path, value):
    with h5py.File(path, "w") as file:
        file["kernel"] = np.full(3, value)


@pytest.fixture
def model(tmp_path):
    """A model folder, as `network.save` writes it."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_weights(folder / spec.WEIGHTS_FILE, 1.0)
    spec.write(Spec(pooling="gem"), str(folder), seal.sha256_of_file(str(folder / spec.WEIGHTS_FILE)))
    return folder


def test_a_model_is_known_by_the_weights_it_was_named_with(model):
    source = spec.resolve(str(model))
    before = source.fingerprint()
    assert before == source.sha256 == seal.sha256_of_file(str(model / spec.WEIGHTS_FILE))
    write_weights(model / spec.WEIGHTS_FILE, 2.0)
    assert source.fingerprint() == before


def test_weights_of_another_model_beside_model_json(model):
    write_weights(model / spec.WEIGHTS_FILE, 2.0)
    said = r"model\.json and model\.weights\.h5 in '.*model' were not written together; if a job is writing"
    with pytest.raises(UserError, match=said) as caught:
        spec.resolve(str(model))
    assert "\n" not in str(caught.value)


def test_model_json_that_is_replaced_while_the_weights_are_read(model, monkeypatch):
    document = json.loads((model / spec.SPEC_FILE).read_text())
    del document["weights_sha256"]  # as an older dim wrote it
    (model / spec.SPEC_FILE).write_text(json.dumps(document))
    assert spec.resolve(str(model)).spec == Spec(pooling="gem")
    read = seal.sha256_of_file

    def replacing(uri):
        (model / spec.SPEC_FILE).write_text(json.dumps(document | {"pooling": "mac"}))
        return read(uri)

    monkeypatch.setattr(seal, "sha256_of_file", replacing)
    with pytest.raises(UserError, match="were not written together"):
        spec.resolve(str(model))


def test_a_whitening_that_is_replaced_after_it_was_hashed_is_not_applied(tmp_path, monkeypatch):
    monkeypatch.setattr("dim.app.worker_placement.gpus_per_worker", lambda _: 0)
    ones, path = np.ones(512, np.float32), str(tmp_path / "w.npz")

    def fitted(scale):
        return Whitening(0 * ones, np.diag(scale * ones), ones, 0.5, "pca", {})

    fitted(1).save(path)
    known = seal.sha256_of_file(path)
    config = ExtractConfig(manifest="m.csv", model="vgg16-gem", out="out", whitening=path, precision="float32")
    recipe = recipe_of(config, config.source(config.model))
    fitted(2).save(path)
    assert recipe.whitening is not None
    assert embedding_of(recipe).whitening == recipe.whitening.sha256 == known != load(path).sha256
    assert recipe.whitening.projection[0, 0] == 1  # and this is what is handed to the workers
