"""Checks in a child process that an HDF5 file can be read: a damaged file can crash or hang the process that reads it.

The child process runs this module, which does not import TensorFlow.
"""

import os
import resource
import signal
import subprocess
import sys
from typing import Any

import h5py

from dim.io import processes

SECONDS = 60.0  # seconds that the child may take; it reads VGG16's weights (59 MB) in half a second
MEMORY = 2**32  # bytes that the child may take: ten times the largest array of a VGG16 with its classifier


def require_whole(path: str) -> None:
    """Raises ValueError if the file at `path` is damaged, or if an array of it is kept in another file."""
    try:
        child = subprocess.run(
            processes.command(__name__, os.path.abspath(path)),
            capture_output=True,
            env=processes.child_environment(),
            check=False,
            timeout=SECONDS,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"damaged: reading it took longer than {SECONDS:.0f} s") from error
    if child.returncode < 0:
        raise ValueError(f"damaged: reading it killed the process ({signal.Signals(-child.returncode).name})")
    if child.returncode:
        raise ValueError(child.stderr)


def _read_entry(name: str, entry: Any) -> None:
    dict(entry.attrs)
    if isinstance(entry, h5py.Dataset):
        if entry.external or entry.is_virtual:
            raise ValueError(f"{name!r} is kept in another file")
        entry[()]


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        with h5py.File(sys.argv[1]) as content:
            _read_entry("/", content)
            content.visititems(_read_entry)
    except Exception as error:  # reading a damaged or hostile file can raise anything
        sys.exit(str(error) or type(error).__name__)
