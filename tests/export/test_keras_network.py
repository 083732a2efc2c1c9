"""The exported Keras network gives the same descriptors as dim's, for each pooling and backend and photos of any size.

dim does not depend on torch or JAX. Their tests run if DIM_TORCH or DIM_JAX names a Python that has them:

    uv venv --python 3.11 other && uv pip install --python other keras torch
    DIM_TORCH=other/bin/python pytest tests/export/test_keras_network.py
"""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from networks import SIZES, images, trained

from dim.export import keras_network
from dim.model.spec import Source, Spec

POOLINGS = [
    {"pooling": "gem", "dimension": 16},
    {"pooling": "mac"},
    {"pooling": "spoc"},
    {"pooling": "spoc-prior"},
    {"pooling": "crow"},
    {"pooling": "rmac"},
    {"pooling": "rmac", "region_dimension": 8, "dimension": 4},
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with a .keras file of each pooling, photos of several sizes, and their descriptors by dim's networks."""
    folder = tmp_path_factory.mktemp("exported")
    photos = [images(*size) for size in SIZES]
    np.savez(folder / "photos.npz", *photos)
    expected = {}
    for number, options in enumerate(POOLINGS):
        spec = Spec(resize="long-side", layer="block4_conv3", **options)
        model = trained(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(keras_network.network, "load", lambda _, model=model: model)
            keras_network.model_of(Source(spec, "random", None)).save(folder / f"{number}.keras")
        expected[number] = [model(each, training=False).numpy() for each in photos]
    keras.backend.clear_session()
    return folder, expected


PROGRAM = """
import sys, keras, numpy as np
folder, count = sys.argv[1], int(sys.argv[2])
assert keras.backend.backend() == sys.argv[3]
with np.load(folder + "/photos.npz") as photos:
    photos = list(photos.values())
for number in range(count):
    model = keras.models.load_model(f"{folder}/{number}.keras")
    found = [keras.ops.convert_to_numpy(model(each, training=False)) for each in photos]
    np.savez(f"{folder}/{number}.npz", *found)
foreign = {"dim"} | ({"tensorflow"} - {sys.argv[3]})
assert not foreign & {name.split(".")[0] for name in sys.modules}
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "torch", "jax"])
def test_descriptors_are_equal_where_there_is_no_dim(exported, backend):
    python = sys.executable if backend == "tensorflow" else os.environ.get(f"DIM_{backend.upper()}")
    if python is None:
        pytest.skip(f"dim doesn't need {backend}; set DIM_{backend.upper()} to a Python that has it and Keras")
    folder, expected = exported
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [python, "-c", PROGRAM, folder, str(len(expected)), backend],
        env=environment | {"KERAS_BACKEND": backend},
        cwd=folder,
        check=True,
    )
    for number, descriptors in expected.items():
        with np.load(folder / f"{number}.npz") as found:
            for one, other in zip(found.values(), descriptors, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-5, err_msg=str(POOLINGS[number]))
