"""Whether a file is still what it was: its sha256, and inputs that must not change while a job reads them."""

import contextlib
import hashlib
from collections.abc import Iterator

from dim import files
from dim.errors import UserError


def of(content: bytes) -> str:
    """The sha256 of `content`, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def of_file(uri: str) -> str:
    """The sha256 of the file at `uri`, hexadecimal. Raises OSError where it can't be read."""
    return of(files.read_bytes(uri))


@contextlib.contextmanager
def unchanged(*uris: str | None) -> Iterator[None]:
    """For files that several steps of a job read: raises UserError where one has another content at the end."""
    given = [uri for uri in uris if uri]
    before = [_if_readable(uri) for uri in given]
    yield
    for uri, known in zip(given, before, strict=True):
        if _if_readable(uri) != known:
            raise changed(uri)


def changed(uri: str) -> UserError:
    """The error for an input that was another when a job read it a second time."""
    return UserError(f"{uri!r} changed while this job ran; run the same command again")


def _if_readable(uri: str) -> str | None:
    try:
        return of_file(uri)
    except OSError:  # whoever reads it says so
        return None
