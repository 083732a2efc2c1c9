"""What is in a folder of photos, on any storage: the files that are taken, and whatever else was seen there."""

import errno
import logging
import os
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.fs as pafs

from dim import files
from dim.data.reasons import summed
from dim.errors import UserError
from dim.storage import patient

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
        first, why = next(iter(found.skipped)), summed(found.skipped.values())
        log.warning("not taken of %r: %d (%s), such as %r", folder, len(found.skipped), why, first)
    return found.files


@patient
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
        parts = files.path_of(info)[len(top) :].strip("/").split("/")
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
