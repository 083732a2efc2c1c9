"""Activations of the layers that training leaves as they are, kept on the node's scratch disk.

With everything up to `block4_pool` frozen, its activations of a photo never change: they are computed once, and the
mining pass and every training step start from them. One Arrow tensor (float16, memory-mapped when read) a photo, in a
folder named by the fingerprint of trunk, preprocessing and input size; written beside and renamed, so that processes of
one node share the folder without a lock, and a death leaves nothing half-written. Not `.npy`: NumPy parses its header
as Python, which CPython 3.11 does not survive in several threads ("AST constructor recursion depth mismatch").
"""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa

from dim import scratch


class TrunkCache:
    """The cache of one trunk. What would go beyond `limit` bytes, over all trunks, is not kept."""

    def __init__(self, folder: str | None, fingerprint: str, limit: int) -> None:
        self._folder = scratch.kept(folder) / "trunk" / hashlib.sha256(fingerprint.encode()).hexdigest()[:32]
        self._folder.mkdir(parents=True, exist_ok=True)
        os.utime(self._folder)
        self._left = limit - _make_room(self._folder, limit)

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
        if activations.nbytes > self._left:
            return
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)  # another run may have made room by removing this trunk
        beside = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            with pa.OSFile(str(beside), "wb") as file:
                pa.ipc.write_tensor(pa.Tensor.from_numpy(np.ascontiguousarray(activations)), file)
            beside.replace(path)
            self._left -= activations.nbytes
        except OSError:  # a full disk costs time, not the run
            beside.unlink(missing_ok=True)
            self._left = 0

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.arrow"


def _make_room(folder: Path, limit: int) -> int:
    """The bytes that all trunks take, after those used longest ago were deleted until they fit into `limit`."""
    sizes = {trunk: _size(trunk) for trunk in folder.parent.iterdir() if trunk.is_dir()}
    for trunk in sorted(sizes.keys() - {folder}, key=lambda trunk: trunk.stat().st_mtime):
        if sum(sizes.values()) <= limit:
            break
        shutil.rmtree(trunk, ignore_errors=True)
        sizes[trunk] = 0
    return sum(sizes.values())


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*.*"):
        with contextlib.suppress(OSError):
            total += file.stat().st_size
    return total
