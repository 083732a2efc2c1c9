"""dim's layers under JAX give what NumPy gives, forward and backward: the checks of the accelerator's benchmark.

They run where DIM_JAX names a Python that has Keras, JAX, pyarrow and h5py, and no TensorFlow:

    uv venv --python 3.11 other && uv pip install --python other "jax[cpu]" keras pyarrow h5py
    DIM_JAX=other/bin/python pytest tests/model/test_jax.py
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def test_poolings_loss_and_network_are_right_under_jax():
    python = os.environ.get("DIM_JAX")
    if python is None:
        pytest.skip("dim doesn't need JAX; set DIM_JAX to a Python that has it, Keras, pyarrow and h5py")
    if subprocess.run([python, "-c", "import pyarrow, h5py"], capture_output=True, check=False).returncode:
        pytest.skip(f"DIM_JAX={python} has no pyarrow or no h5py")
    command = [python, REPOSITORY / "tests" / "benchmarks" / "gpu.py", "--smoke", "--seconds", "0"]
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    checks = [line for line in said if "check" in line]
    assert len(checks) == 7 * 2 * 3 + 1 and all(check["ok"] for check in checks)
    assert said[-1]["ok"] and said[-1]["left_out"] > 0
