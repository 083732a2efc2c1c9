"""Photos in a folder, on any storage: which there are, how a manifest names them, which cannot be read."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs as pafs

from dim import files
from dim.data import isolated
from dim.data.decode import DecodeError, check_size
from dim.progress import Progress
from dim.storage import patient

MISSING = "no such file"
_AT_ONCE = 1000
_HEADER = 2**16  # bytes that hold the header of most photos
_MOST_WAYS = 100  # by which links lead to the same folder; there could be as many as there are paths

_Place = tuple[int, int]  # device and inode of a folder


@patient
def listed(folder: str) -> list[str]:
    """The files below `folder`, at any depth, as sorted paths relative to it. What is hidden is skipped, as are links
    to a folder that they stand in.
    """
    filesystem, path = files.locate(folder)
    if isinstance(filesystem, pafs.LocalFileSystem):
        return sorted(_walked(path))
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    names = (files.path_of(info)[len(path) :].strip("/") for info in found if info.is_file)
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def _walked(top: str) -> Iterator[str]:
    ways: Counter[_Place] = Counter()
    left: deque[tuple[str, frozenset[_Place]]] = deque([(top, frozenset())])
    while left:
        folder, above = left.popleft()
        about = Path(folder).stat()
        place = about.st_dev, about.st_ino
        ways[place] += 1
        if place in above or ways[place] > _MOST_WAYS:
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    left.append((entry.path, above | {place}))
                elif entry.is_file():
                    files.locate(entry.path)  # which refuses a name that couldn't be opened by it
                    yield entry.path[len(top) :].lstrip("/")


def named(uris: Sequence[str], folder: str) -> list[str]:
    """How a manifest in `folder` names the photos: relative if below it, else by their full path or URI."""
    within = f"{_full(folder).rstrip('/')}/"
    return [_full(uri).removeprefix(within) for uri in uris]


def _full(uri: str) -> str:
    return uri if "://" in uri else files.locate(uri)[1]


def unreadable(uris: Sequence[str], check: Callable[[str], None]) -> dict[int, str]:
    """Position → reason of each photo that fails `check`, which is `decodes` or `opens`; many are tried at once."""

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
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(uris), _AT_ONCE):
            for row, why in enumerate(threads.map(reason, uris[start : start + _AT_ONCE]), start):
                progress.add(1, errors=why is not None)
                if why is not None:
                    failed[row] = why
    return failed


@patient
def read(uri: str) -> bytes:
    """The photo's file. Raises DecodeError, before it is read, where it is over the limit; OSError as storage does."""
    with files.opened(uri) as file:
        check_size(file.size())
        return bytes(file.read())


def decodes(uri: str) -> None:
    """Raises DecodeError or OSError unless the photo decodes to its end, which a process of its own tries."""
    isolated.decode(read(uri), 32, "squash")


@patient
def opens(uri: str) -> None:
    """Raises DecodeError or OSError unless the photo's header is sound, which a process of its own tries; reads little
    more than that, where it stands at the file's beginning.
    """
    with files.opened(uri) as file:
        check_size(file.size())
        start = bytes(file.read(_HEADER))
        try:
            isolated.check_header(start)
        except DecodeError:
            if len(start) == file.size():
                raise
            isolated.check_header(start + bytes(file.read()))
