"""Photos, on any storage: how a manifest names them, and which cannot be read.

What is in a folder of photos, on any storage: the files that are taken, and whatever else was seen there.
"""

import errno
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.fs as pafs

from dim.app.progress import Progress
from dim.data import isolated
from dim.data.limits import LIMITS, DecodeError, Limits, check_size
from dim.errors import UserError, count_reasons
from dim.io import files
from dim.io.storage import parallel_futures, parallel_map, retried
from dim.io.uris import is_plain, parts

MISSING = "no such file"
# Photos of a task or a process that are read at a time; those that have more bytes, only when it is their turn.
READ_AT_ONCE, READ_AHEAD = 16, 2**23
_HEADER = 2**16  # bytes that hold the header of most photos


def named(uris: Sequence[str], folder: str) -> list[str]:
    """How a manifest in `folder` names the photos: relative if below it, else by their full path or URI. What names no
    place stays as it is.
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


def unreadable(uris: Sequence[str], check: Callable[[str], None], most: int | None = None) -> dict[int, str]:
    """Position → reason of each photo on which `check` raises DecodeError or OSError; `most` are checked at a time.

    If not given, it is enough for each core to decode one, and for some to be read.
    """

    def reason(uri: str) -> str | None:
        try:
            check(uri)
        except FileNotFoundError:
            return MISSING
        except (DecodeError, OSError) as error:
            return " ".join(str(error).split())
        return None

    failed: dict[int, str] = {}
    progress = Progress("checking", len(uris), errors=True)
    for row, why in enumerate(parallel_map(reason, uris, most or READ_AT_ONCE + (os.cpu_count() or 1))):
        progress.add(1, errors=why is not None)
        if why is not None:
            failed[row] = why
    return failed


@retried
def read(uri: str) -> bytes:
    """The photo's file. Raises DecodeError, before it is read, where it is over the limit; OSError as storage does."""
    with files.opened(uri) as file:
        check_size(file.size())
        return bytes(file.read())


@dataclass(frozen=True)
class Fetched:
    """The photo at `uri`, whose file is read ahead if it is small."""

    uri: str
    _ahead: Future[bytes | None]

    def read(self) -> bytes:
        """As `read`."""
        return self._ahead.result() or read(self.uri)


def fetched(uris: Sequence[str]) -> Iterator[Fetched]:
    """The photos at `uris`, in their order; several are read while the caller works on one."""
    # `parallel_futures` first: it then ends by itself after the last photo, and that one is still waited for.
    return (
        Fetched(uri, ahead) for ahead, uri in zip(parallel_futures(_read_small, uris, READ_AT_ONCE), uris, strict=True)
    )


@retried
def _read_small(uri: str) -> bytes | None:
    with files.opened(uri) as file:
        return bytes(file.read()) if file.size() <= READ_AHEAD else None


def decodes(uri: str, limits: Limits = LIMITS) -> bool:
    """Whether the file holds several frames or pages. Raises DecodeError or OSError unless the first decodes to its
    end, which a process of its own tries.
    """
    return isolated.decode(read(uri), 32, "squash", limits=limits).several


@retried
def opens(uri: str, limits: Limits = LIMITS) -> None:
    """Raises DecodeError or OSError unless the photo's header is sound, which a process of its own tries; reads little
    more than that, where it stands at the file's beginning.
    """
    with files.opened(uri) as file:
        check_size(file.size(), limits)
        start = bytes(file.read(_HEADER))
        try:
            isolated.check_header(start, limits)
        except DecodeError:
            if len(start) == file.size():
                raise
            isolated.check_header(start + bytes(file.read()), limits)


log = logging.getLogger(__name__)

_MOST_WAYS = 100  # by which links lead to the same folder; there could be as many as there are paths

_Place = tuple[int, int]  # device and inode of a folder


@dataclass
class Listing:
    """What is below a folder, at any depth, as paths relative to it: `files`, and `skipped`, path → why not taken.

    `hidden` counts the files and folders whose name begins with a dot; what these folders hold isn't looked at.
    """

    files: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    hidden: int = 0


def listed(folder: str) -> list[str]:
    """The files of the `listing` of `folder`, sorted; the log says what else was seen."""
    found = listing(folder)
    if found.skipped:
        first, why = next(iter(found.skipped)), count_reasons(found.skipped.values())
        log.warning("not taken of %r: %d (%s), such as %r", folder, len(found.skipped), why, first)
    return found.files


@retried
def listing(folder: str) -> Listing:
    """All that is below `folder`, sorted. Raises UserError where the folder itself can't be read."""
    filesystem, path = files.locate(folder)
    found = _on_disk(path) if isinstance(filesystem, pafs.LocalFileSystem) else _in_store(filesystem, path)
    found.files.sort()
    found.skipped = dict(sorted(found.skipped.items()))
    return found


def _in_store(filesystem: pafs.FileSystem, top: str) -> Listing:
    found = Listing()
    hidden = set()
    for info in filesystem.get_file_info(pafs.FileSelector(top, recursive=True)):
        parts = files.decoded_path(info)[len(top) :].strip("/").split("/")
        dotted = next((place for place, part in enumerate(parts) if part.startswith(".")), None)
        if dotted is not None:
            hidden.add(tuple(parts[: dotted + 1]))
        elif info.is_file:
            found.files.append("/".join(parts))
    found.hidden = len(hidden)
    return found


def _on_disk(top: str) -> Listing:
    found = Listing()
    ways: Counter[_Place] = Counter()
    left: deque[tuple[str, frozenset[_Place]]] = deque([(top, frozenset())])
    while left:
        folder, above = left.popleft()
        name = folder[len(top) :].lstrip("/")
        try:
            about = Path(folder).stat()
            place = about.st_dev, about.st_ino
            ways[place] += 1
            if place in above:
                found.skipped[name] = "a link to a folder that it stands in"
                continue
            if ways[place] > _MOST_WAYS:
                found.skipped[name] = f"a folder to which {_MOST_WAYS} other paths lead"
                continue
            with os.scandir(folder) as scanned:
                entries = list(scanned)
        except OSError as error:
            if folder == top:
                raise UserError(f"cannot read the folder {top!r}: {error.strerror}") from error
            found.skipped[name] = f"a folder that can't be read: {error.strerror}"
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
                left.append((entry.path, above | {place}))
            else:
                found.files.append(path)
    return found


def _unfit(entry: os.DirEntry[str]) -> str | None:
    """Why `entry` is neither a file to take nor a folder to enter; None where it is one."""
    try:
        entry.name.encode()
        if entry.is_dir() or entry.is_file():
            return None
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    except OSError as error:
        return "a link that leads to itself" if error.errno == errno.ELOOP else f"can't be read: {error.strerror}"
    return "a link to nothing" if entry.is_symlink() else "neither a file nor a folder"
