"""Reads many photos in advance: those of their own files in parallel, and those of a tar in one pass over the tar."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.data.limits import check_size
from dim.data.photos import read
from dim.io import files, tars
from dim.io.storage import parallel_futures, retried
from dim.io.uris import tar_and_member

READ_AT_ONCE = 32  # photos that one task reads at a time
READ_AHEAD = 2**22  # bytes; larger files are read only when the caller asks for them
# The most photos of a unit of work. A job that is killed may lose what its running units have done. But a tar in an
# object store is read once only if its photos stay together; the usual tar has 10,000.
MOST_FILES, MOST_OF_TAR = 1000, 10_000


@dataclass(frozen=True)
class Prefetched:
    """A photo whose file is read in advance if it is small. `read` must be called before the next photo is taken."""

    position: int
    read: Callable[[], bytes]


def prefetch(uris: Sequence[str]) -> Iterator[Prefetched]:
    """Yields each of the photos at `uris`. Reads the next photos while the caller works on a photo.

    `Prefetched.position` is the photo's position in `uris`, and `Prefetched.read` does what the function `read` does.
    Photos of their own files come in the order of `uris`. Then come the photos of each tar, in the order of the tar,
    which is read in one pass.
    """
    single: dict[int, str] = {}
    in_tars: dict[str, dict[str, list[int]]] = {}
    for position, uri in enumerate(uris):
        tar, member = tar_and_member(uri)
        if member is None:
            single[position] = uri
        else:
            in_tars.setdefault(tar, {}).setdefault(member, []).append(position)
    # `futures` comes first, so that `zip` takes all of it. If `zip` stopped early, the last reads would not be retried.
    futures = parallel_futures(_read_small, single.values(), READ_AT_ONCE)
    for future, (position, uri) in zip(futures, single.items(), strict=True):
        yield Prefetched(position, partial(_result, future, uri))
    for tar, wanted in in_tars.items():
        yield from _pass_over(tar, wanted)


def ranges(paths: pa.ChunkedArray, most: int) -> Iterator[tuple[int, int]]:
    """Yields ranges (first, last + 1) of `paths`, which are units of work of at most `most` photos.

    A unit has at most MOST_FILES photos, or at most MOST_OF_TAR of a single tar. It ends where a tar ends, if that is
    possible.
    """
    tars = pc.struct_field(pc.extract_regex(paths, "(?s)^(?P<tar>.*[.]tar)#"), "tar")  # null: not in a tar
    same = pc.fill_null(pc.equal(tars.slice(1), tars.slice(0, max(0, len(tars) - 1))), False)
    begins = np.ones(len(tars) + 1, dtype=bool)
    begins[1:-1] = ~same.to_numpy()
    starts = np.flatnonzero(begins)
    begin = 0
    while begin < len(tars):
        # `above` is the first start of a tar, or of a photo of its own file, after `begin`.
        above = int(starts[np.searchsorted(starts, begin, "right")])
        several = int(starts[np.searchsorted(starts, begin + min(most, MOST_FILES), "right") - 1])
        end = max(several, min(above, begin + min(most, MOST_OF_TAR)))
        yield begin, end
        begin = end


def _result(future: Future[bytes | None], uri: str) -> bytes:
    return future.result() or read(uri)


@retried
def _read_small(uri: str) -> bytes | None:
    with files.opened(uri) as file:
        return bytes(file.read()) if file.size() <= READ_AHEAD else None


def _pass_over(tar: str, wanted: dict[str, list[int]]) -> Iterator[Prefetched]:
    """Yields the photos of one tar. `wanted` maps the name of each member to the positions of its photos."""
    left, fault = dict(wanted), None
    try:
        with tars.Archive(tar) as archive:
            for member in archive.members():
                for position in left.pop(member.name, ()):
                    yield Prefetched(position, partial(_content, archive, member))
                if not left:
                    return
    except OSError as error:
        fault = error
    for name, positions in left.items():
        for position in positions:
            yield Prefetched(position, partial(_raise, fault or tars.missing(name)))


def _content(archive: tars.Archive, member: tars.Member) -> bytes:
    check_size(member.size)
    return archive.content(member)


def _raise(error: OSError) -> bytes:
    raise error
