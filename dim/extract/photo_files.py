"""Asks storage about the photo files of a whole manifest, in units that `dim.app.tasks` spreads."""

import os
import posixpath
import stat
from collections import Counter
from collections.abc import Callable, Container
from itertools import chain
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.io import files, object_listings, uris
from dim.io.storage import parallel_map

UNIT = 50_000  # files; a task asks a local disk about so many in a fraction of a second
_AT_ONCE = 500  # local files that a thread asks for in turn; a network disk is slow, so there are many threads
_STORE = r"^(s3|gs)://"
_UNUSUAL = r"^[^/]|//|/\.{0,2}(/|$)"  # local names that are not their own absolute, normalised path


class State(NamedTuple):
    """Whether there is a regular file, its bytes, and the time of its last change in ns; None if there is none."""

    is_file: bool
    size: int | None
    mtime_ns: int | None


def units(places: pa.ChunkedArray) -> list[pa.Array]:
    """Divides the paths or URIs `places` into units: int64 arrays of positions.

    Local files are divided by their order. Objects of a store are divided by folder, such that no two units would list
    the same folder.
    """
    remote = pc.match_substring_regex(places, _STORE).to_numpy()
    found = _cut(np.flatnonzero(~remote))
    if not remote.any():
        return found
    rows = np.flatnonzero(remote)
    above = pc.replace_substring_regex(places.take(pa.array(rows)), r"/[^/]*$", "")
    encoded = above.dictionary_encode().unify_dictionaries()
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])
    folders = encoded.chunk(0).dictionary.to_pylist()
    counts = Counter(dict(zip(folders, np.bincount(codes).tolist(), strict=True)))
    listed = object_listings.folders_worth_listing(counts)
    number_of = {folder: number for number, folder in enumerate(["", *sorted(listed)])}
    owner = np.array([number_of[_listed_above(folder, number_of)] for folder in folders])[codes]
    order = np.argsort(owner, kind="stable")
    alone, *grouped = np.split(rows[order], np.cumsum(np.bincount(owner, minlength=len(number_of)))[:-1])
    # The first are in no listed folder. They are asked for one by one, so they may be in any unit.
    return [*found, *_cut(alone), *map(pa.array, grouped)]


def _cut(rows: np.ndarray) -> list[pa.Array]:
    return [pa.array(rows[start : start + UNIT]) for start in range(0, len(rows), UNIT)]


def _listed_above(folder: str, listed: Container[str]) -> str:
    """The deepest of the folders `listed` that holds `folder`, or is it; "" if there is none."""
    while folder and folder not in listed:
        folder = folder.rpartition("/")[0]
    return folder


def one_of_each_folder(places: pa.ChunkedArray) -> list[str]:
    """One of the paths or URIs `places` in each folder."""
    folders = pa.table({"folder": pc.replace_substring_regex(places, r"[^/]*$", ""), "place": places})
    firsts = folders.group_by("folder", use_threads=False).aggregate([("place", "first")])
    found: list[str] = firsts["place_first"].to_pylist()
    return found


def chosen(rows: pa.Table, unit: pa.Array) -> pa.Table:
    """The `rows` of a unit, which are not copied if they are consecutive.

    Ray sends the rows of a slice of a table, but the whole array of a slice of an array. So `rows` is a table.
    """
    first, last = unit[0].as_py(), unit[-1].as_py()
    return rows.slice(first, len(unit)) if last - first == len(unit) - 1 else rows.take(unit)


def states(places: pa.ChunkedArray) -> list[State]:
    """The state of each of the files at `places`. The state of a tar's member is that of the tar."""
    whole = pc.replace_substring_regex(places, r"(?s)^(.*)(\.tar)#.*$", r"\1\2")
    distinct = whole.unique()
    local = pc.invert(pc.match_substring_regex(distinct, _STORE))
    found = zip(
        (*pc.indices_nonzero(local).to_pylist(), *pc.indices_nonzero(pc.invert(local)).to_pylist()),
        (*_local_states(distinct.filter(local)), *_object_states(distinct.filter(pc.invert(local)))),
        strict=True,
    )
    known = [state for _, state in sorted(found)]
    return [known[row] for row in pc.index_in(whole, distinct).to_pylist()]


def _object_states(places: pa.Array) -> list[State]:
    return [State(info.is_file, info.size, info.mtime_ns) for info in files.infos(places.to_pylist())]


def _local_states(places: pa.Array) -> list[State]:
    paths: list[str] = places.to_pylist()
    for row in pc.indices_nonzero(pc.match_substring_regex(places, _UNUSUAL)).to_pylist():
        paths[row] = uris.parts(paths[row])[1]
    chunks = [paths[start : start + _AT_ONCE] for start in range(0, len(paths), _AT_ONCE)]
    return list(chain.from_iterable(parallel_map(lambda chunk: list(map(_local_state, chunk)), chunks)))


def _local_state(path: str) -> State:
    try:
        found = os.stat(path)  # noqa: PTH116  (a Path would take as long as the call)
    except (OSError, ValueError):  # there is no such file, or its name is too long
        return State(False, None, None)
    is_file = stat.S_ISREG(found.st_mode)
    return State(is_file, found.st_size if is_file else None, found.st_mtime_ns)


def resolved(uri: str, real: Callable[[str], str] = os.path.realpath) -> str:
    """The path of the local file `uri` without links and `..`; or the URI of an object of a store without `..`.

    `real` is `os.path.realpath`; a caller with many files in few folders gives a cached one. A tar's member is where
    its tar is.
    """
    tar, mark, member = uri.rpartition(uris.MEMBER)
    if mark:
        return f"{resolved(f'{tar}.tar', real)}#{member}"
    if not files.is_local(uri):
        return posixpath.normpath(uri.replace("://", ":/")).replace(":/", "://", 1)  # object stores have no links
    path = files.locate(uri)[1]
    folder, _, name = path.rpartition("/")
    if not name or os.path.islink(path):  # noqa: PTH114  (as above)
        return real(path)
    return f"{real(folder or '/').rstrip('/')}/{name}"
