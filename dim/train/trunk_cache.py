"""Activations of the layers that training leaves as they are, kept on the node's scratch disk.

With everything up to `block4_pool` frozen, its activations of a photo never change: they are computed once, and the
mining pass and every training step start from them. One Arrow tensor (float16, memory-mapped when read) a photo, in a
folder named by the fingerprint of trunk, preprocessing and input size; written beside and renamed, so that processes of
one node share the folder, and a death leaves nothing half-written. Not `.npy`: NumPy parses its header as Python,
which CPython 3.11 does not survive in several threads ("AST constructor recursion depth mismatch").
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from dim import files, leftovers, scratch
from dim.train.quota import Quota


class TrunkCache:
    """The cache of one trunk. What would go beyond `limit` bytes, over all trunks of the node, is not kept.

    Raises JobFailed where nothing can be written to its folder. A disk that is full later costs time, not the run.
    """

    def __init__(self, folder: str | None, fingerprint: str, limit: int) -> None:
        self._full = False
        trunks, name = scratch.kept(folder) / "trunk", hashlib.sha256(fingerprint.encode()).hexdigest()[:32]
        self._folder = trunks / name
        leftovers.sweep(str(self._folder))
        with files.writing(str(self._folder)):
            self._quota = Quota(trunks, name, limit)

    def is_full(self) -> bool:
        """Whether there was no room for something."""
        return self._full

    def holds(self, key: str) -> bool:
        """Whether something is kept under `key`."""
        return self._path(key).exists()

    def get(self, key: str) -> np.ndarray | None:
        """The activations kept under `key`, or None."""
        try:
            with pa.memory_map(str(self._path(key))) as file:
                kept: np.ndarray = pa.ipc.read_tensor(file).to_numpy()
            return kept
        except (OSError, ValueError):
            return None  # never kept, or cut short by a power failure

    def put(self, key: str, activations: np.ndarray) -> None:
        """Keeps `activations` under `key`, if there is room."""
        tensor = pa.Tensor.from_numpy(np.ascontiguousarray(activations))
        try:
            if not self._quota.take(size := pa.ipc.get_tensor_size(tensor)):
                self._full = True
                return
            try:
                self._write(key, tensor)
            except OSError:
                self._quota.give_back(size)
                raise
        except OSError:  # some file systems have no room even to count that there is none
            self._full = True

    def _write(self, key: str, tensor: pa.Tensor) -> None:
        path, beside = self._path(key), self._folder / f"{key}.{os.getpid()}.tmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with pa.OSFile(str(beside), "wb") as file:
                pa.ipc.write_tensor(tensor, file)
            if path.exists():  # cut short, or from another worker
                self._quota.give_back(path.stat().st_size)
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.arrow"
