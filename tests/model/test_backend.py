"""Keras has the settings that dim needs, whatever the settings of other projects."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import dim

PROGRAM = """
import os, sys
sys.argv = ["any.py"]
from dim.app import cli, environment
os.environ |= environment.tensorflow_variables()
import tensorflow
from dim.model import network, spec
from dim.model.backend import keras
model = network.load(spec.resolve("vgg16-gem", "random", image_size=32))
layer = model.get_layer("block1_conv1")
print(keras.config.backend(), keras.config.floatx(), keras.config.epsilon(), layer.kernel.dtype, layer.data_format)
"""


def run(program, home, **variables):
    (home / ".keras").mkdir(exist_ok=True)
    settings = {"backend": "jax", "floatx": "float16", "epsilon": 1e-3, "image_data_format": "channels_first"}
    (home / ".keras" / "keras.json").write_text(json.dumps(settings))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KERAS_")}
    environment |= {"HOME": str(home), "TF_CPP_MIN_LOG_LEVEL": "3", **variables}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


def test_the_settings_of_another_project_change_nothing(tmp_path):
    done = run(PROGRAM, tmp_path, KERAS_BACKEND="torch")
    assert done.stdout.split() == ["tensorflow", "float32", "1e-07", "float32", "channels_last"], done.stderr


def test_another_backend_in_the_process_is_named(tmp_path):
    program = """
import sys, types
keras = sys.modules["keras"] = types.ModuleType("keras")  # torch and jax may not be there
keras.config = types.SimpleNamespace(backend=lambda: "torch")
from dim.model import network
"""
    done = run(program, tmp_path)
    assert done.stderr.splitlines()[-1] == (
        "dim.errors.UserError: Keras runs on 'torch' in this process, and dim needs 'tensorflow'; "
        "set KERAS_BACKEND=tensorflow before Keras or TensorFlow is imported"
    )


def test_keras_comes_from_one_place():
    paths = Path(dim.__file__).parent.rglob("*.py")
    found = [
        path.name for path in paths if re.search(r"^\s*(import keras|from keras)\b", path.read_text(), re.MULTILINE)
    ]
    assert found == ["backend.py"]
