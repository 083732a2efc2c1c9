"""Reads, downloads and writes weights files.

Weights files may come from strangers. So this module reads only arrays, and uses neither pickle nor `load_model`. It
refuses a file if an array has another shape than expected, or values that are not finite.
"""

import contextlib
import io
import math
import os
import socket
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dim.errors import UserError
from dim.io import files, seal
from dim.model import hdf5_check
from dim.model.backend import keras

DOWNLOAD_SECONDS = 30.0  # a download fails if its connection sends nothing for so long
NPY_HEADER_BYTES = 4096  # no header of an .npy file is longer


def load_into(model: keras.Model, uri: str, sha256: str | None = None) -> None:
    """Sets the weights of `model` from a file. The file must have the hash `sha256`, unless this is None.

    The file is a `.weights.h5` of Keras 3, an `.h5` as keras.applications distributes it, or an `.npz` with an array
    `layer/variable` for each weight. Further arrays in an `.npz` are ignored. The network of an HDF5 file must have the
    same layers in the same order. Raises UserError if the file cannot be read, does not fit, has another hash, or holds
    a value that is not finite.
    """
    if not uri.endswith((".npz", ".h5")):
        raise UserError(f"weights {uri!r} are neither .npz nor .h5")
    try:
        content = files.read_bytes(uri)
        changed = sha256 not in (None, seal.sha256(content))
        if not changed:
            (_load_npz if uri.endswith(".npz") else _load_h5)(model, uri, content)
    except Exception as error:  # reading a damaged or hostile file can raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"cannot load the weights {uri!r} into {model.name!r}: {reason}") from error
    if changed:
        raise seal.changed(uri)
    for variable in model.weights:
        if not np.isfinite(variable.numpy()).all():
            raise UserError(f"weights {uri!r}: {variable.path} is not finite everywhere")


def _load_npz(model: keras.Model, _: str, content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for layer in model.layers:
            for variable in layer.weights:
                variable.assign(_array(archive, f"{layer.name}/{variable.name}", tuple(variable.shape)))


def _array(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> np.ndarray:
    member = f"{name}.npy"
    if member not in archive.namelist():
        raise ValueError(f"it lacks the array {name!r}")
    # An entry that is larger cannot be an array of this shape. Unpacking it could fill the memory.
    if archive.getinfo(member).file_size > 8 * math.prod(shape) + NPY_HEADER_BYTES:
        raise ValueError(f"{name!r} is larger than an array of shape {shape}")
    with archive.open(member) as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    if array.shape != shape or array.dtype.kind != "f":
        raise ValueError(f"{name!r} has shape {array.shape} and type {array.dtype}, not {shape} and a float type")
    return array.astype(np.float32)


def _load_h5(model: keras.Model, uri: str, content: bytes) -> None:
    # Keras reads only local files, and recognises their format by the ending of their names.
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, "w.weights.h5" if uri.endswith(".weights.h5") else "w.h5")
        local.write_bytes(content)
        hdf5_check.require_whole(str(local))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Keras just warns if a layer gets no weights
            model.load_weights(str(local))


def save(model: keras.Model, uri: str) -> str:
    """Writes the weights of `model` to `uri`, a `.weights.h5`. Returns the sha256 of the file."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, "w.weights.h5")
        model.save_weights(str(local))
        content = local.read_bytes()
    files.write_bytes(uri, content)
    return seal.sha256(content)


@contextlib.contextmanager
def downloading(file: str) -> Iterator[None]:
    """Sets a timeout while keras.applications downloads `file`. Turns a failure into a UserError that gives advice."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_SECONDS)
    try:
        yield
    except Exception as error:  # Keras raises a bare Exception
        folder = f"{os.environ.get('KERAS_HOME', '~/.keras')}/models"
        raise UserError(
            f"cannot download the ImageNet weights {file!r} ({' '.join(str(error).split())[:300]}); get them elsewhere "
            f"and put them into {folder} on each machine, or name the file by --weights"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
