"""Nothing in the current folder is imported, whatever its name."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from PIL import Image

from dim.data import isolated
from dim.io import processes
from dim.model import hdf5_check

TRAPS = ("h5py", "numpy", "json", "logging", "random", "PIL/__init__", "ray", "dim", "sitecustomize", "tensorflow")


@pytest.fixture
def trapped(tmp_path, monkeypatch):
    """A folder to stand in whose files would leave a mark beside it if they were imported; the mark."""
    mark, folder = tmp_path / "mark", tmp_path / "photos"
    for trap in TRAPS:
        file = folder / f"{trap}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"open({str(mark)!r}, 'a').write(__file__)\nraise ImportError(__file__)\n")
    monkeypatch.chdir(folder)
    return mark


def test_processes_of_dims_own_import_nothing_from_there(trapped, tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["a"] = [1, 2]
    Image.new("RGB", (9, 9)).save(tmp_path / "photo.png")
    hdf5_check.require_whole(str(tmp_path / "w.h5"))
    assert isolated.decode((tmp_path / "photo.png").read_bytes(), 32, "squash").pixels.shape == (32, 32, 3)
    assert not trapped.exists()


@pytest.mark.parametrize("entry", ["", "."])
def test_also_where_this_python_does(trapped, monkeypatch, entry):
    monkeypatch.setattr(sys, "path", [entry, *sys.path])
    program = "import json, numpy, logging; print(json.__file__, numpy.__file__)"
    subprocess.run(
        [sys.executable, "-c", program], env=processes.child_environment(), check=True, stdout=subprocess.PIPE
    )
    assert not trapped.exists()


def test_where_dim_itself_is_there_it_is_found(monkeypatch):
    code = Path(processes.__file__).parents[2]
    monkeypatch.chdir(code)
    monkeypatch.setattr(sys, "path", [str(code), *(entry for entry in sys.path if Path(entry or ".") != code)])
    assert str(code) in processes.import_path()["PYTHONPATH"].split(os.pathsep)


@pytest.mark.slow
def test_rays_workers_import_nothing_from_there(trapped):
    program = """
import ray
from dim.app import cluster

def found():
    import importlib.util, numpy, os
    return importlib.util.find_spec("trap"), os.getcwd()

with cluster.connected():
    print(ray.get(ray.remote(found).remote()))
"""
    Path("trap.py").touch()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == f"{(None, str(Path.cwd()))}\n", done.stderr
    assert not trapped.exists()
