"""Sizes and times of many objects of a store, taken from listings: one request lists a thousand objects.

A listing is not always worth its time: a folder may hold a hundred million objects besides the wanted ones, and Arrow
returns a listing only as a whole. So a second process, with limited memory, lists folders. Meanwhile this process asks
for the objects one by one, starting from the last, and stops the second process once it knows all of them. Thus
listings never take longer than single requests, however large a folder is. If a folder can't be listed, single requests
do the whole work.
"""

import contextlib
import json
import logging
import os
import resource
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import IO, Any

import pyarrow.fs as pafs

from dim.io import processes, storage

log = logging.getLogger(__name__)

FEWEST = 10_000  # objects; for fewer no second process starts, as single requests take a second at most
PAGE = 1000  # objects that one request lists
_BUCKET = 2  # the slashes in the URI of a bucket
MEMORY = 4 * 2**30  # bytes for the second process: about ten million objects


def infos(uris: Sequence[str], ask: Callable[[str], pafs.FileInfo]) -> dict[str, pafs.FileInfo]:
    """Type, size and modification time of the objects at `uris`. `ask` gets them for one URI in a single request."""
    with _arriving(uris) as known:
        # Listings begin with the first object, so single requests begin with the last.
        left = (uri for uri in reversed(dict.fromkeys(uris)) if uri not in known)
        for uri, info in storage.parallel_map(lambda uri: (uri, ask(uri)), left):
            known[uri] = info
        return known


@contextlib.contextmanager
def _arriving(uris: Sequence[str]) -> Iterator[dict[str, pafs.FileInfo]]:
    """Yields a dictionary that fills, while the block runs, with the files at `uris` that listings find."""
    known: dict[str, pafs.FileInfo] = {}
    folders: list[str] = []
    if len(uris) >= FEWEST:
        folders = worth_listing(uris)
        log.info("asking the store about %d files, with listings of %d folders", len(uris), len(folders))
    if not folders:
        yield known
        return
    with processes.start(__name__, subprocess.DEVNULL) as process:
        assert process.stdin and process.stdout
        request = {"folders": folders, "uris": uris}
        thread = threading.Thread(target=_receive, args=(request, process.stdin, process.stdout, known))
        thread.start()
        try:
            yield known
        finally:
            process.kill()
            thread.join()
            with contextlib.suppress(BrokenPipeError):  # a part of the request may be unwritten
                process.stdin.close()


def worth_listing(uris: Iterable[str]) -> list[str]:
    """The deepest folders with at least PAGE of `uris`. A URI counts only for the deepest folder in the result."""
    counts = Counter(uri.rpartition("/")[0] for uri in uris)
    worth = []
    for depth in range(max((folder.count("/") for folder in counts), default=0), _BUCKET - 1, -1):
        for folder in [folder for folder in counts if folder.count("/") == depth]:
            if counts[folder] >= PAGE:
                worth.append(folder)
            elif depth > _BUCKET:
                counts[folder.rpartition("/")[0]] += counts[folder]
    return worth


def _receive(request: Any, to: IO[bytes], back: IO[bytes], known: dict[str, pafs.FileInfo]) -> None:
    with contextlib.suppress(BrokenPipeError, ValueError):  # the process was killed, or has died
        to.write(json.dumps(request).encode() + b"\n")
        to.flush()
        for line in back:
            for uri, size, mtime_ns in json.loads(line):
                path = uri.partition("://")[2]
                known[uri] = pafs.FileInfo(path, pafs.FileType.File, size=size, mtime_ns=mtime_ns)


def _serve() -> None:
    """The second process: reads one request from stdin and prints a line for each folder that it has listed."""
    request = json.loads(sys.stdin.buffer.readline())
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    listed = partial(_listed, wanted=set(request["uris"]))
    for found in storage.parallel_map(listed, request["folders"]):
        print(json.dumps(found), flush=True)


def _listed(folder: str, wanted: set[str]) -> list[tuple[str, int, int]]:
    """URI, size and modification time (ns) of the `wanted` files below `folder`, as single requests give them.

    Empty objects are left out: such an object may stand for a folder, and only a single request can tell.
    """
    filesystem, path = storage.locate(folder)
    step = 10**9 if isinstance(filesystem, pafs.S3FileSystem) else 1  # S3 gives milliseconds only in listings
    try:
        found = storage.retried(filesystem.get_file_info)(pafs.FileSelector(path, recursive=True))
    except OSError:
        return []
    files = ((f"{folder.partition('://')[0]}://{info.path}", info) for info in found if info.is_file and info.size)
    return [(uri, info.size, info.mtime_ns // step * step) for uri, info in files if uri in wanted]


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # `sys.stdin` can't be closed at exit while a thread reads from it
    os._exit(1)


if __name__ == "__main__":
    _serve()
