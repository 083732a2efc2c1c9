"""Members of uncompressed tar archives, read where the archives lie: on disks and in object stores.

`TAR#MEMBER` names a member (see `dim.io.uris`). A tar has no index: a header stands before each member's content. So
to find members, one passes over all headers. On a disk, that seeks over the contents. In an object store, where each
request takes 20 to 100 ms, it reads the whole archive in large pieces, and skips only contents that are larger than a
piece. `Archive` reads members on the way, so that many members of a tar take one pass. `read` reads a single member. It
remembers where the members of the last tars are.

If an archive is cut off or broken, the members before the fault can be read. If members have the same name, the first
is read.
"""

import functools
import io
import tarfile
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from dim.io import files
from dim.io.storage import parallel_futures, retried

PIECE = 2**21  # bytes that one request to an object store reads
AHEAD = 4  # pieces that are requested at a time
_DISK_PIECE = 2**13  # bytes that one call reads from a disk
_MOST = 2**23  # bytes; a name or another header that claims to be longer is broken
_BLOCK = tarfile.BLOCKSIZE
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "Zstandard"}


class BrokenTar(OSError):
    """The archive is cut off or broken, or is not an uncompressed tar. The message says where."""


@dataclass(frozen=True)
class Member:
    """A regular file in a tar. Its content is the archive's `size` bytes from `offset`."""

    name: str
    offset: int
    size: int


def members(uri: str) -> Iterator[Member]:
    """Yields the members of the tar at `uri`, as `Archive.members` does, and raises what that raises."""
    with Archive(uri) as archive:
        yield from archive.members()


def read(uri: str, name: str, check_size: Callable[[int], None]) -> bytes:
    """Returns the content of the member `name` of the tar at `uri`. Calls `check_size` first, with the size in bytes.

    Raises:
        BrokenTar: The archive is cut off or broken before the end of this member, or is not an uncompressed tar.
        FileNotFoundError: There is no such tar, or no such member in it.
        OSError: The archive cannot be read.
    """
    with retried(files.opened)(uri) as file:
        member = _index(uri, file.size()).find(name)
        check_size(member.size)
        return _whole(bytes(retried(file.read_at)(member.size, member.offset)), member.size)


def missing(name: str) -> FileNotFoundError:
    """The error of a member `name` that is not in its tar."""
    return FileNotFoundError(f"the tar has no file {name!r}")


@functools.lru_cache(maxsize=4)  # an index of 100,000 members takes 20 MB
def _index(uri: str, _size: int) -> "_Index":
    return _Index(uri)


class _Index:
    """Where the members of a tar are. Passes over the headers only as far as the members that were asked for."""

    def __init__(self, uri: str) -> None:
        self._left = members(uri)
        self._found: dict[str, Member] = {}
        self._fault: OSError | None = None
        self._lock = threading.Lock()

    def find(self, name: str) -> Member:
        """Returns the member `name`. Raises as the function `read` does."""
        with self._lock:
            while name not in self._found and (member := self._next()):
                self._found.setdefault(member.name, member)
            if name in self._found:
                return self._found[name]
            if self._fault and not isinstance(self._fault, BrokenTar):
                _index.cache_clear()  # storage failed: the next call starts again
            raise self._fault or missing(name)

    def _next(self) -> Member | None:
        try:
            return next(self._left, None)
        except OSError as error:
            self._fault = error
            return None


def _whole(content: bytes, size: int) -> bytes:
    """Returns `content`. Raises BrokenTar unless it has `size` bytes."""
    if len(content) < size:
        raise BrokenTar(f"the tar is cut off after {len(content):,} of the {size:,} bytes of this file")
    return content


class Archive(io.BufferedReader):
    """A tar, open for reading. A context manager; `content` and `members` may be called in turn."""

    def __init__(self, uri: str) -> None:
        self._source = _Source(uri)
        self._ended = False  # whether a header should be where the archive has ended
        super().__init__(self._source, _DISK_PIECE if files.is_local(uri) else PIECE)

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads a header as any file does, but raises BrokenTar if it claims to have more than `_MOST` bytes."""
        if size is None or not 0 <= size <= _MOST:
            raise BrokenTar(f"a header of {size} bytes at byte {self.tell():,}")
        content = super().read(size)
        self._ended = len(content) < size
        return content

    def content(self, member: Member) -> bytes:
        """Returns the content of a member. Reads on if it is the last that `members` yielded.

        Raises BrokenTar if the archive is cut off, and OSError if it cannot be read.
        """
        self.seek(member.offset)
        return _whole(super().read(member.size), member.size)

    def members(self) -> Iterator[Member]:
        """Yields the regular files in the tar, in the order of the archive.

        Reads names in any format of tar (ustar, GNU long names, pax). A name that is not UTF-8 has surrogates in it.
        Leaves out folders, links, devices and sparse files. The last member of an archive that is cut off is yielded,
        too: its name is known, although its content is not complete.

        Raises:
            BrokenTar: After the members before a fault: the archive is cut off or broken.
            OSError: The archive cannot be read.
        """
        place = -1
        tar: Any = None
        while True:
            try:
                tar = tar or tarfile.TarFile(fileobj=self, mode="r", encoding="utf-8")
                found = tar.next()
                tar.members.clear()  # it would grow with the archive
            except OSError:
                raise
            except Exception as error:  # the parser raises almost any type if a header is broken
                raise BrokenTar(self._fault(tar.offset if tar else 0)) from error
            if found is None:
                break
            if tar.offset <= place:  # a negative size, which would lead the parser into a circle
                raise BrokenTar(f"the tar is broken at byte {place:,}")
            place = tar.offset
            if found.isreg() and found.sparse is None:
                yield Member(found.name, found.offset_data, found.size)
        # The parser takes a broken header and the end of the file for the archive's end, which is a block of zeros.
        self.seek(tar.offset)
        if self.read(_BLOCK) != bytes(_BLOCK):
            raise BrokenTar(self._fault(tar.offset))

    def _fault(self, place: int) -> str:
        """Says what is wrong with the archive at byte `place`, where a header should stand."""
        if self._ended:
            return f"the tar is cut off at byte {self._source.size:,}" if self._source.size else "the tar is empty"
        if place:
            return f"the tar is broken at byte {place:,}"
        self.seek(0)
        start = self.read(_BLOCK)
        kind = next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)
        return f"a tar compressed by {kind}; decompress it" if kind else "not a tar archive"


class _Source(io.RawIOBase):
    """A file on any storage, as Python's own buffers read it. In an object store, the next pieces are read ahead."""

    def __init__(self, uri: str) -> None:
        self._file = retried(files.opened)(uri)
        self.size = int(self._file.size())
        self._place = 0
        self._local = files.is_local(uri)
        self._ahead: Generator[Future[bytes], None, None] | None = None
        self._next = 0  # where the next piece of `_ahead` begins

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves to the byte `offset` from the start, the current place or the end."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        """Fills `buffer` with bytes from the current place. Returns how many they are; 0 at the end of the file."""
        wanted = max(0, min(len(buffer), self.size - self._place))
        if not wanted:
            return 0
        content = self._piece(self._place, wanted) if self._local else self._from_ahead()[:wanted]
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    @retried
    def _piece(self, place: int, length: int = PIECE) -> bytes:
        return bytes(self._file.read_at(length, place))

    def _from_ahead(self) -> bytes:
        """The bytes from the current place to the end of a piece."""
        if self._ahead is None or not self._next <= self._place < self._next + AHEAD * PIECE:
            self._stop()
            self._next = self._place
            self._ahead = parallel_futures(self._piece, range(self._place, self.size, PIECE), AHEAD)
        while True:
            piece, start = next(self._ahead), self._next
            self._next += PIECE
            if self._place < self._next:
                return piece.result()[self._place - start :]

    def _stop(self) -> None:
        if self._ahead is not None:
            self._ahead.close()

    def close(self) -> None:
        """Closes the file."""
        if not self.closed:
            self._stop()
            self._file.close()
        super().close()
