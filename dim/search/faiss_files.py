"""Files of FAISS indexes: their names, the facts that index.py records about them, and FAISS's search parameters."""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss

from dim.errors import UserError
from dim.io import files, seal
from dim.io.seal import Facts

FILE, IDS_FILE, SEAL_FILE = "knn.index", "ids.parquet", "index.json"  # files of an index
PARTS = "parts"  # entry of index.json
MOST_HASHED = 2**32  # bytes that are hashed in about four seconds; of a larger file, only the size is checked
LARGEST = 2**20  # largest number in a factory string or parameter; FAISS advises no more lists for 1e9 rows


def facts_of(path: str) -> Facts:
    """The size and checksum of the index file `path`, for the seal of the index."""
    with open(path, "rb") as file:
        return {"bytes": Path(path).stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def matches(path: str, facts: Facts) -> bool:
    """Whether the index file `path` has the size and the checksum in `facts`. Of a large file, checks only the size."""
    if (size := Path(path).stat().st_size) > MOST_HASHED:
        return bool(size == facts.get("bytes"))
    return all(facts.get(name) == value for name, value in facts_of(path).items())


def require_unchanged(uri: str, time: int) -> None:
    """Raises UserError if the time of the last change of the file at `uri` is not `time`, in nanoseconds."""
    if files.info(uri).mtime_ns != time:
        raise seal.changed(uri)


def set_parameters(index: Any, parameters: str, flag: str = "--parameters") -> None:
    """Sets FAISS's search parameters on `index`. If that fails, raises a UserError that names `flag`."""
    what = f"{flag} {parameters!r} can't be set on this index"
    # FAISS casts values to integers without a check. A bad value fails only later, in the middle of a search.
    for value in re.findall(r"=\s*([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)", parameters):
        if not 0 <= float(value) <= LARGEST:
            raise UserError(f"{what}: {value} is not from 0 to {LARGEST}")
    with as_user_error(what):
        faiss.ParameterSpace().set_index_parameters(index, parameters)
    if (inverted := inverted_lists(index)) is not None and inverted.nprobe < 1:
        raise UserError(f"{what}: nprobe must be at least 1")


def inverted_lists(index: Any) -> Any:
    """The IndexIVF (an index of inverted lists) within `index`, or None if there is none."""
    inverted = faiss.try_extract_index_ivf(index)
    return None if inverted is None else faiss.downcast_index(inverted)


@contextlib.contextmanager
def as_user_error(what: str) -> Iterator[None]:
    """Turns FAISS's RuntimeError and MemoryError into a UserError. Its message is one line that begins with `what`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = " ".join(re.split(r"\.(?:cpp|h):\d+: |failed: ", str(error))[-1].split())
        raise UserError(f"{what}: {reason}") from error
