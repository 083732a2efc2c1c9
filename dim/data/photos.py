"""Photos, on any storage: how a manifest names them, and which cannot be read."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from dim import files
from dim.data import isolated
from dim.data.limits import LIMITS, DecodeError, Limits, check_size
from dim.errors import UserError
from dim.progress import Progress
from dim.storage import at_once, in_flight, patient
from dim.uris import is_plain, parts

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
    for row, why in enumerate(at_once(reason, uris, most or READ_AT_ONCE + (os.cpu_count() or 1))):
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
    # `in_flight` first: it then ends by itself after the last photo, and that one is still waited for.
    return (Fetched(uri, ahead) for ahead, uri in zip(in_flight(_read_small, uris, READ_AT_ONCE), uris, strict=True))


@patient
def _read_small(uri: str) -> bytes | None:
    with files.opened(uri) as file:
        return bytes(file.read()) if file.size() <= READ_AHEAD else None


def decodes(uri: str, limits: Limits = LIMITS) -> bool:
    """Whether the file holds several frames or pages. Raises DecodeError or OSError unless the first decodes to its
    end, which a process of its own tries.
    """
    return isolated.decode(read(uri), 32, "squash", limits=limits).several


@patient
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
