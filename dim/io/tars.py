"""Members of uncompressed tar archives, read where the archives lie: on disks and in object stores.

`TAR#MEMBER` names a member (see `dim.io.uris`). A tar has no index: a header stands before each member's content. So
`members` passes over all headers. On a disk it seeks over the contents. In an object store, where each request takes
20 to 100 ms, it reads the whole archive in large pieces and skips only contents that are larger than a piece.

If an archive is cut off or broken, the members before the fault can be read.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dim.io import files
from dim.io.storage import retried

PIECE = 2**22  # bytes that one request to an object store reads
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
    """Yields the regular files in the tar at `uri`, in the order of the archive.

    Reads names in any format of tar (ustar, GNU long names, pax). A name that is not UTF-8 has surrogates in it. Leaves
    out folders, links, devices and sparse files. The last member of an archive that is cut off is yielded, too: its
    name is known, although its content is not complete.

    Raises:
        BrokenTar: After the members before a fault: the archive is cut off or broken.
        OSError: The archive cannot be read.
    """
    with _Archive(uri) as archive:
        yield from archive.members()


class _Archive(io.BufferedReader):
    """A tar, open for reading. A caller may read the content of a member before it takes the next member."""

    def __init__(self, uri: str) -> None:
        self._source = _Source(uri)
        self._ended = False  # whether a header should be where the archive has ended
        super().__init__(self._source, _DISK_PIECE if files.is_local(uri) else PIECE)

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads as any file does, but raises BrokenTar if a header claims to have more than `_MOST` bytes."""
        if size is None or not 0 <= size <= _MOST:
            raise BrokenTar(f"a header of {size} bytes at byte {self.tell():,}")
        content = super().read(size)
        self._ended = len(content) < size
        return content

    def members(self) -> Iterator[Member]:
        """See the function `members`."""
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
    """A file on any storage, as Python's own buffers read it."""

    def __init__(self, uri: str) -> None:
        self._file = retried(files.opened)(uri)
        self.size = int(self._file.size())
        self._place = 0

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
        """Fills `buffer` with the bytes from the current place. Returns how many there are."""
        wanted = max(0, min(len(buffer), self.size - self._place))
        content = retried(self._file.read_at)(wanted, self._place) if wanted else b""
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def close(self) -> None:
        """Closes the file."""
        if not self.closed:
            self._file.close()
        super().close()
