"""Photos on disks and in object stores: find them, name them in a manifest, read them, and check that they decode.

`list_folder` finds the files below a folder and says what it skips. `manifest_paths` makes the paths of a manifest.
`read` gets the bytes of a file, or of a file in a tar. `unreadable` checks many photos in parallel, and `opens` checks
the header of one.
"""

import errno
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from dim.app.progress import Progress, step
from dim.data import isolated
from dim.data.limits import LIMITS, DecodeError, Limits, check_size
from dim.errors import UserError, count_reasons
from dim.io import files, tars
from dim.io.storage import REQUESTS_AT_ONCE, parallel_map, retried
from dim.io.uris import is_plain, parts, tar_and_member

log = logging.getLogger(__name__)

MISSING = "no such file"
_HEADER = 2**16  # bytes; enough for the header of most photos
_MOST_PATHS = 100  # the most paths by which one folder is entered; n folders with links can make 2**n paths

_Inode = tuple[int, int]  # device and inode of a folder


@dataclass
class Listing:
    """What is below a folder, at any depth. `files` has the paths of the files, relative to the folder.

    `skipped` maps the path of each skipped file or folder to the reason. `hidden` counts the files and folders whose
    name begins with a dot. Such folders are not entered.
    """

    files: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    hidden: int = 0


@retried
def list_folder(folder: str) -> Listing:
    """Returns the sorted `Listing` of `folder`. Raises UserError if the folder itself cannot be read."""
    filesystem, path = files.locate(folder)
    with step(f"listing {folder!r}"):
        found = _on_disk(path) if isinstance(filesystem, pafs.LocalFileSystem) else _in_store(filesystem, path)
    found.files.sort()
    found.skipped = dict(sorted(found.skipped.items()))
    return found


def file_names(folder: str) -> list[str]:
    """Returns the `files` of `list_folder`, and logs what was skipped."""
    found = list_folder(folder)
    if found.skipped:
        first, why = next(iter(found.skipped)), count_reasons(found.skipped.values())
        log.warning("skipped in %r: %d (%s), such as %r", folder, len(found.skipped), why, first)
    return found.files


def _in_store(filesystem: pafs.FileSystem, top: str) -> Listing:
    found = Listing()
    hidden = set()
    for info in filesystem.get_file_info(pafs.FileSelector(top, recursive=True)):
        names = files.decoded_path(info)[len(top) :].strip("/").split("/")
        dotted = next((place for place, name in enumerate(names) if name.startswith(".")), None)
        if dotted is not None:
            hidden.add(tuple(names[: dotted + 1]))
        elif info.is_file:
            found.files.append("/".join(names))
    found.hidden = len(hidden)
    return found


def _on_disk(top: str) -> Listing:
    """Lists `top`. Follows links, except to folders above, and enters no folder more than `_MOST_PATHS` times."""
    found = Listing()
    entered: Counter[_Inode] = Counter()
    left: deque[tuple[str, frozenset[_Inode]]] = deque([(top, frozenset())])
    while left:
        folder, above = left.popleft()
        name = folder[len(top) :].lstrip("/")
        try:
            about = Path(folder).stat()
            inode = about.st_dev, about.st_ino
            entered[inode] += 1
            if inode in above:
                found.skipped[name] = "a link to a folder above it"
                continue
            if entered[inode] > _MOST_PATHS:
                found.skipped[name] = f"a folder that links repeat more than {_MOST_PATHS} times"
                continue
            with os.scandir(folder) as scanned:
                entries = list(scanned)
        except OSError as error:
            if folder == top:
                raise UserError(f"cannot read the folder {top!r}: {error.strerror}") from error
            found.skipped[name] = f"a folder that cannot be read: {error.strerror}"
            continue
        if not entries and name:
            found.skipped[name] = "an empty folder"
        for entry in entries:
            path = entry.path[len(top) :].lstrip("/")
            if entry.name.startswith("."):
                found.hidden += 1
            elif reason := _unfit(entry):
                found.skipped[os.fsencode(path).decode(errors="backslashreplace")] = reason
            elif entry.is_dir():
                left.append((entry.path, above | {inode}))
            else:
                found.files.append(path)
    return found


def _unfit(entry: os.DirEntry[str]) -> str | None:
    """Returns why `entry` cannot be used as a file or a folder, or None if it can."""
    try:
        entry.name.encode()
        if entry.is_dir() or entry.is_file():
            return None
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    except OSError as error:
        return "a link to itself" if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"
    return "a broken link" if entry.is_symlink() else "neither a file nor a folder"


def manifest_paths(uris: Sequence[str], folder: str) -> list[str]:
    """Returns the paths that a manifest in `folder` holds for the photos at `uris`.

    A photo below `folder` gets a relative path, and any other a full path or URI, even if the URI names no place.
    """
    scheme, top = parts(folder)
    within = f"{top.rstrip('/')}/"

    def name(uri: str) -> str:
        try:
            kind, path = parts(uri)
        except UserError:
            return uri
        relative = path.removeprefix(within)
        below = kind == scheme and relative != path and is_plain(relative)
        return relative if below else uri if kind else path

    return list(map(name, uris))


@retried
def read(uri: str) -> bytes:
    """Reads a photo's file. Raises DecodeError at once if the file is too large, and OSError if storage fails."""
    with _opened(uri, LIMITS) as file:
        return bytes(file.read())


def _opened(uri: str, limits: Limits) -> pa.NativeFile:
    """Opens a photo's file, or a file in a tar. Raises DecodeError if it is over the limit."""
    tar, member = tar_and_member(uri)
    if member is not None:
        return pa.BufferReader(tars.read(tar, member, partial(check_size, limits=limits)))
    file = files.opened(uri)
    try:
        check_size(file.size(), limits)
    except DecodeError:
        file.close()
        raise
    return file


def reason(error: DecodeError | OSError) -> str:
    """Returns in one line why a photo could not be read or decoded."""
    return MISSING if isinstance(error, FileNotFoundError) else " ".join(str(error).split())


def unreadable(uris: Sequence[str], check: Callable[[str], None], most: int = REQUESTS_AT_ONCE) -> dict[int, str]:
    """Calls `check` for photos in parallel. Returns position → reason for each call that raises DecodeError or OSError.

    At most `most` photos are checked at a time.
    """

    def checked(uri: str) -> str | None:
        try:
            check(uri)
        except (DecodeError, OSError) as error:
            return reason(error)
        return None

    failed: dict[int, str] = {}
    progress = Progress("checking", len(uris), errors=True)
    for row, why in enumerate(parallel_map(checked, uris, most)):
        progress.add(1, errors=why is not None)
        if why is not None:
            failed[row] = why
    return failed


@retried
def opens(uri: str, limits: Limits = LIMITS) -> None:
    """Checks the photo's header in a separate process. Reads the whole file only if its beginning is not enough.

    Raises DecodeError if the header is broken or the photo is over the limits, and OSError if the file can't be read.
    """
    with _opened(uri, limits) as file:
        start = bytes(file.read(_HEADER))
        try:
            isolated.check_header(start, limits)
        except DecodeError:
            if len(start) == file.size():
                raise
            isolated.check_header(start + bytes(file.read()), limits)
