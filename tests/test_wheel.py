"""The wheel, installed outside the repository: the command `dim`, a search from Python, and the notebook.

The environment has the packages of the environment that runs the tests, but dim only as the wheel. An editable install
is tried in the same way.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PARTS = ("dim", "jobs", "pyproject.toml", "README.md", "LICENSE")  # that a wheel is made of


class Environment:
    """A virtual environment in which `installed` is the argument of pip: a wheel, or -e and a folder."""

    def __init__(self, folder, *installed):
        self.folder = folder
        venv.create(folder, with_pip=False)
        (packages,) = folder.glob("lib/python*/site-packages")
        shared = [entry for entry in sys.path if Path(entry).name == "site-packages"]
        (packages / "shared.pth").write_text("\n".join(shared))
        pip("--python", folder / "bin" / "python", "install", "--no-deps", "--no-build-isolation", *installed)
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self.variables["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def run(self, program, *arguments, cwd):
        command = [self.folder / "bin" / program, *arguments]
        return subprocess.run(command, cwd=cwd, env=self.variables, capture_output=True, text=True, check=True).stdout


def pip(*arguments):
    pytest.importorskip("pip", reason="needs pip, which builds and installs the wheel")
    done = subprocess.run([sys.executable, "-m", "pip", "-q", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the repository; building leaves files beside the code."""
    folder = tmp_path_factory.mktemp("source")
    for name in PARTS:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (file,) = folder.glob("dim_retrieval-*.whl")
    return Environment(folder / "environment", "--no-index", file)


@pytest.fixture
def elsewhere(tmp_path):
    """A working directory that has a folder named dim."""
    (tmp_path / "dim" / "photos").mkdir(parents=True)
    return tmp_path


def test_the_command_lists_the_jobs(wheel, elsewhere):
    assert "\n  split     Split labelled photos" in wheel.run("dim", "--help", cwd=elsewhere)


def test_a_job(wheel, elsewhere, demo):
    for product in sorted(demo.glob("Arla-*"))[:4]:
        (elsewhere / "photos" / product.name).mkdir(parents=True)
        for photo in sorted(product.glob("*.jpg"))[:3]:
            shutil.copy(photo, elsewhere / "photos" / product.name)
    result = wheel.run("dim", "split", "photos", "--out", "photos.csv", cwd=elsewhere)
    assert json.loads(result.splitlines()[-1])["images"] == 12
    assert (elsewhere / "photos.csv").read_text().count(".jpg") >= 12


def test_a_search_from_python(wheel, elsewhere, write_descriptors):
    folder = write_descriptors(["a", "b", "c", "d"], np.eye(4))
    program = f"""
import dim, numpy, ray, sys
print(dim.__file__)
print(dim.Index({folder!r}).search(numpy.eye(4)[2:3], 1).ids)
assert "tensorflow" not in sys.modules and not ray.is_initialized()
"""
    where, found = wheel.run("python", "-c", program, cwd=elsewhere).splitlines()
    assert where.startswith(str(wheel.folder)) and found == "[['c']]"


def test_it_is_typed(wheel):
    assert list(wheel.folder.glob("lib/python*/site-packages/dim/py.typed"))


def test_an_editable_install_is_found_beside_a_folder_named_dim(source, elsewhere, tmp_path_factory):
    editable = Environment(tmp_path_factory.mktemp("editable"), "--editable", source)
    where = editable.run("python", "-c", "import dim; print(dim.__file__)", cwd=elsewhere)
    assert where.strip() == str(source / "dim" / "__init__.py")
    assert "\n  split     Split labelled photos" in editable.run("dim", "--help", cwd=elsewhere)


def test_the_notebook(wheel, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel, which run notebooks")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    kernel = tmp_path / "jupyter" / "kernels" / "wheel"
    kernel.mkdir(parents=True)
    start = [str(wheel.folder / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": start, "display_name": "wheel", "language": "python"}))
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PATH", wheel.variables["PATH"])
    (file,) = wheel.folder.glob("lib/python*/site-packages/dim/assets/*.ipynb")
    notebook = nbformat.read(file, as_version=4)
    (tmp_path / "work").mkdir()
    place = {"metadata": {"path": tmp_path / "work"}}
    # The test's own time limit counts; nbclient's would be too short on a busy machine.
    nbclient.NotebookClient(notebook, kernel_name="wheel", resources=place, startup_timeout=600).execute()
    lists = notebook.cells[-1].outputs[0].text.splitlines()
    assert [line.split()[:2] for line in lists] == [
        [image_id, "1.000"] for image_id in (tmp_path / "work" / "ids.txt").read_text().splitlines()[:2]
    ]
