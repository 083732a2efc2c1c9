"""Whether a weights file can be read at all, told before a job begins. Needs no TensorFlow."""

import zipfile

from dim import files, local_copies
from dim.errors import UserError
from dim.model import hdf5


def require_readable(uri: str) -> None:
    """Raises UserError where the weights file at `uri` is missing, or no archive of arrays; for which network they are
    is left open.
    """
    if not files.exists(uri):
        raise UserError(f"no weights file {uri!r}")
    if not uri.endswith((".npz", ".h5")):
        raise UserError(f"weights {uri!r} are neither .npz nor .h5")
    try:
        (_require_npz if uri.endswith(".npz") else _require_h5)(uri)
    except Exception as error:  # whatever opening a stranger's file raises, the file is at fault
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read the weights {uri!r}: {reason}; get them again") from error


def _require_npz(uri: str) -> None:
    with files.opened(uri) as file, zipfile.ZipFile(file):
        pass


def _require_h5(uri: str) -> None:
    with local_copies.read(uri) as path:
        hdf5.require_whole(path)
