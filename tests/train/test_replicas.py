"""Workers with several GPUs each train and embed as one with one does: on logical CPUs, each a replica as a GPU is."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ports import free_ports
from replicas import CASES, PHOTOS, fitted

PROGRAM = Path(__file__).parents[1] / "replicas.py"


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one replica holds at the end."""
    return fitted(tf.distribute.MirroredStrategy(["/cpu:0"]), 0, 1, tmp_path_factory.mktemp("one"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_two_replicas_a_worker_equal_one(one, tmp_path, workers):
    hosts = [f"127.0.0.1:{port}" for port in free_ports(workers)] if workers > 1 else []
    outs = [tmp_path / f"{rank}.npz" for rank in range(workers)]
    started = [
        subprocess.Popen([sys.executable, PROGRAM, str(rank), "2", out, *hosts], stderr=subprocess.PIPE, text=True)
        for rank, out in enumerate(outs)
    ]
    try:
        for process in started:
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said
    finally:
        for process in started:
            process.kill()
            process.wait()
    for out in outs:
        with np.load(out) as arrays:
            found = dict(arrays)
        assert found["replicas"] == 2 * workers
        # Adam's first steps are as large for a gradient of rounding errors as for any other.
        for name in CASES:
            tolerance = 0.1 if name == "adam" else 1e-3
            np.testing.assert_array_equal(found[f"{name}/begun"], one[f"{name}/begun"])
            update = one[f"{name}/ended"] - one[f"{name}/begun"]
            for ending in ("ended", "averaged"):
                difference = found[f"{name}/{ending}"] - one[f"{name}/{ending}"]
                assert np.linalg.norm(difference) <= tolerance * np.linalg.norm(update), name
            np.testing.assert_allclose(found[f"{name}/losses"], one[f"{name}/losses"], rtol=tolerance)
            np.testing.assert_array_equal(found[f"{name}/rows"], np.arange(PHOTOS))
            np.testing.assert_allclose(found[f"{name}/vectors"], one[f"{name}/vectors"], atol=tolerance / 10)
