"""Photos, on any storage: how a manifest names them, and which cannot be read."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from dim import files
from dim.data import isolated
from dim.data.limits import LIMITS, DecodeError, Limits, check_size
from dim.errors import UserError
from dim.progress import Progress
from dim.storage import patient
from dim.uris import is_plain, parts

MISSING = "no such file"
_AT_ONCE = 1000
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


def unreadable(uris: Sequence[str], check: Callable[[str], None]) -> dict[int, str]:
    """Position → reason of each photo on which `check` raises DecodeError or OSError; many are checked at once."""

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
