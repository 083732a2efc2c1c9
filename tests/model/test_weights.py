"""Weights files that are right, broken, hostile, or of another network."""

import os
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from dim.errors import UserError
from dim.io import seal
from dim.model import hdf5_check, spec, weights

KERNEL = np.arange(12, dtype=np.float32).reshape(3, 4)


def network() -> keras.Model:
    """A network of one layer, `pca`, from 3 to 4 values."""
    inputs = keras.Input((3,))
    return keras.Model(inputs, keras.layers.Dense(4, name="pca")(inputs), name="tiny")


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    known = {"kernel": KERNEL, "bias": np.ones(4, np.float32)} | changes
    return {f"pca/{name}": value for name, value in known.items()}


def h5(path: Path, kernel: object = KERNEL, bias: object = KERNEL[0]) -> None:
    """A file as Keras 3 writes it; a callable makes its entry itself."""
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/dense/vars")
        for name, value in (("0", kernel), ("1", bias)):
            if callable(value):
                value(group, name)
            else:
                group[name] = value


def legacy(path: Path, kernel: object = KERNEL, layers: tuple[str, ...] = ("pca",)) -> None:
    """A file as keras.applications distributes it."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for name in layers:
            group = file.create_group(name)
            group.attrs["weight_names"] = [b"kernel:0", b"bias:0"]
            group["bias:0"] = KERNEL[0]
            if callable(kernel):
                kernel(group, "kernel:0")
            else:
                group["kernel:0"] = kernel


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_npz(tmp_path, dtype):
    model, path = network(), str(tmp_path / "w.npz")
    np.savez_compressed(path, other=np.zeros(3), **{name: a.astype(dtype) for name, a in arrays().items()})
    weights.load_into(model, path)
    np.testing.assert_array_equal(model.get_layer("pca").kernel, KERNEL)


@pytest.mark.parametrize(("write", "name"), [(h5, "w.weights.h5"), (legacy, "w.h5")])
def test_h5_of_both_kinds(tmp_path, write, name):
    model = network()
    write(tmp_path / name)
    weights.load_into(model, str(tmp_path / name))
    np.testing.assert_array_equal(model.get_layer("pca").kernel, KERNEL)
    np.testing.assert_array_equal(model.get_layer("pca").bias, KERNEL[0])


def test_saved_weights_come_back(tmp_path):
    model, other, path = network(), network(), str(tmp_path / "w.weights.h5")
    weights.save(model, path)
    weights.load_into(other, path)
    np.testing.assert_array_equal(other.get_layer("pca").kernel, model.get_layer("pca").kernel)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def huge(path: Path) -> None:
    """Arrays of a petabyte, in a few bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in arrays():
            with archive.open(f"{name}.npy", "w") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": (2**40, 2**10)}
                np.lib.format.write_array_header_2_0(file, header)


NPZ = {
    "lacks the array 'pca/bias'": lambda path: np.savez(path, **{"pca/kernel": KERNEL}),
    r"'pca/kernel' has shape \(4, 3\)": lambda path: np.savez(path, **arrays(kernel=KERNEL.T)),
    "not .* a float type": lambda path: np.savez(path, **arrays(kernel=KERNEL.astype(int))),
    "is larger than an array": lambda path: np.savez_compressed(path, **arrays(kernel=np.zeros((3000, 4000)))),
    "pca/bias is not finite": lambda path: np.savez(path, **arrays(bias=np.full(4, np.nan))),
    "Object arrays": lambda path: np.savez(path, **arrays(bias=np.array([Bomb()], object))),
    "Unable to allocate": huge,
    "not a zip": lambda path: path.write_bytes(b"PK\x03\x04 broken"),
    "File is not a zip": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("message", NPZ)
def test_npz_that_is_wrong(tmp_path, message):
    path = tmp_path / "w.npz"
    NPZ[message](path)
    refused(path, message)


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        weights.load_into(network(), str(path))
    assert repr(str(path)) in str(caught.value)
    assert "\n" not in str(caught.value)


SECRET = KERNEL + 100


@pytest.fixture
def hostile(tmp_path):
    """Entries of an HDF5 file that lead out of it, into a file with a right array in it."""
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["kernel"] = SECRET
    (tmp_path / "secret.bin").write_bytes(SECRET.tobytes())
    virtual = h5py.VirtualLayout(KERNEL.shape, "f4")
    virtual[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "kernel", KERNEL.shape)

    def linked(group, name):
        group[name] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "kernel")

    def soft(group, name):
        group[name] = h5py.SoftLink("/elsewhere")
        group.file["elsewhere"] = KERNEL

    def stored_outside(group, name):
        place = [(str(tmp_path / "secret.bin"), 0, SECRET.nbytes)]
        group.create_dataset(name, KERNEL.shape, "f4", external=place)

    def outside_pipe(group, name):
        os.mkfifo(tmp_path / "pipe")  # which nobody writes to
        group.create_dataset(name, KERNEL.shape, "f4", external=[(str(tmp_path / "pipe"), 0, KERNEL.nbytes)])

    def unfolding(group, name):
        group.create_dataset(name, (2**20, 2**16), "f4", chunks=(1024, 1024), compression="gzip")

    return {
        "external link": linked,
        "soft link": soft,
        "external storage": stored_outside,
        "external pipe": outside_pipe,
        "virtual": lambda group, name: group.create_virtual_dataset(name, virtual),
        "unfolding": unfolding,
        "a group": lambda group, name: group.create_group(name),
        "another shape": lambda group, name: group.create_dataset(name, data=KERNEL.T),
        "text": lambda group, name: group.create_dataset(name, data="kernel"),
        "not finite": lambda group, name: group.create_dataset(name, data=KERNEL + np.inf),
    }


@pytest.mark.parametrize(("write", "name"), [(h5, "w.weights.h5"), (legacy, "w.h5")])
@pytest.mark.parametrize(
    "kind",
    [
        "external link",
        "soft link",
        "external storage",
        "external pipe",
        "virtual",
        "unfolding",
        "a group",
        "another shape",
        "text",
        "not finite",
    ],
)
def test_h5_that_leads_elsewhere_or_does_not_fit(tmp_path, hostile, kind, write, name):
    write(tmp_path / name, kernel=hostile[kind])
    refused(tmp_path / name, "weights")


def test_h5_of_another_network(tmp_path):
    legacy(tmp_path / "more.h5", layers=("pca", "more"))
    refused(tmp_path / "more.h5", "Layer count mismatch")
    with h5py.File(tmp_path / "empty.weights.h5", "w"):
        pass
    refused(tmp_path / "empty.weights.h5", "layers will retain .* weights")


@pytest.mark.parametrize("name", ["w.h5", "w.weights.h5"])
def test_h5_that_is_broken(tmp_path, name):
    (tmp_path / name).write_bytes(b"no HDF5")
    refused(tmp_path / name, "file signature not found")
    h5(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    refused(tmp_path / name, "truncated")


@pytest.mark.parametrize(
    ("place", "value", "how"),
    [
        (857, 255, r"killed the process \(SIGSEGV\)"),
        pytest.param(2072, 0, "took longer than 5 s", marks=pytest.mark.slow),
    ],
)
def test_h5_of_which_one_byte_makes_hdf5_crash_or_hang(tmp_path, place, value, how, monkeypatch):
    monkeypatch.setattr(hdf5_check, "SECONDS", 5.0)
    path = tmp_path / "w.h5"
    legacy(path)
    content = bytearray(path.read_bytes())
    content[place] = value
    path.write_bytes(content)
    refused(path, f"cannot load the weights .*: damaged: reading it {how}")
    with pytest.raises(UserError, match=f"cannot read the weights .*: damaged: reading it {how}; get them again"):
        spec.resolve("vgg16-gem", str(path))


def test_other_endings_and_missing_files(tmp_path):
    refused(tmp_path / "w.pth", "are neither .npz nor .h5")
    for name in ("none.npz", "none.h5"):
        refused(tmp_path / name, "No such file")


def test_weights_that_changed_since_they_were_hashed_are_not_loaded(tmp_path):
    model, path = network(), tmp_path / "w.npz"
    np.savez(path, **arrays())
    known = seal.sha256_of_file(str(path))
    weights.load_into(model, str(path), known)
    before = model.get_layer("pca").kernel.numpy()
    np.savez(path, **{name: 2 * array for name, array in arrays().items()})
    with pytest.raises(UserError, match=r"w\.npz' changed while this job ran; run the same command again"):
        weights.load_into(model, str(path), known)
    np.testing.assert_array_equal(model.get_layer("pca").kernel, before)
    saved = str(tmp_path / "w.weights.h5")
    assert weights.save(model, saved) == seal.sha256_of_file(saved)
