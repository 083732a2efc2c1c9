"""Gets the sizes and modification times of many objects of a store, with listings if they save time.

A single request asks for one object; a request of a listing returns a thousand objects. But a folder may hold a hundred
million objects besides the wanted objects, and Arrow returns a listing only once it is complete. So a second process,
with limited memory, lists folders. Meanwhile this process asks for the objects one by one, in reverse order, and stops
the second process once it knows all objects. So the job never waits longer than for single requests alone, however
large a folder is. If a folder can't be listed, single requests get all of its objects.
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

FEWEST = 10_000  # objects; for fewer, single requests take at most a second, so no second process starts
PAGE = 1000  # objects that one request lists
_BUCKET = 2  # slashes in the URI of a bucket, such as s3://bucket
MEMORY = 4 * 2**30  # bytes that the second process may use: enough for about ten million objects


def infos(uris: Sequence[str], ask: Callable[[str], pafs.FileInfo]) -> dict[str, pafs.FileInfo]:
    """Returns type, size and modification time of the objects at `uris`. `ask` makes a single request, for one URI."""
    with _arriving(uris) as known:
        # Listings begin with the first object, so single requests begin with the last.
        left = (uri for uri in reversed(dict.fromkeys(uris)) if uri not in known)
        for uri, info in storage.parallel_map(lambda uri: (uri, ask(uri)), left):
            known[uri] = info
        return known


@contextlib.contextmanager
def _arriving(uris: Sequence[str]) -> Iterator[dict[str, pafs.FileInfo]]:
    """Yields a dictionary by URI. While the block runs, each file at `uris` that a listing finds is added to it."""
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
            with contextlib.suppress(BrokenPipeError):  # `close` writes the rest of the request, which nobody reads
                process.stdin.close()


def worth_listing(uris: Iterable[str]) -> list[str]:
    """The folders worth a listing. Each has at least PAGE of `uris` besides those in deeper folders of the result."""
    return folders_worth_listing(Counter(uri.rpartition("/")[0] for uri in uris))


def folders_worth_listing(counts: Counter[str]) -> list[str]:
    """Does what `worth_listing` does, for a number of URIs directly in each folder. Changes `counts`."""
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
    """Runs the second process: reads one request from stdin, and prints a line for each folder once it is listed."""
    request = json.loads(sys.stdin.buffer.readline())
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    listed = partial(_listed, wanted=set(request["uris"]))
    for found in storage.parallel_map(listed, request["folders"]):
        print(json.dumps(found), flush=True)


def _listed(folder: str, wanted: set[str]) -> list[tuple[str, int, int]]:
    """Lists the `wanted` files below `folder`: URI, size and modification time (ns), as single requests give them.

    Leaves out empty objects: an empty object may stand for a folder, and only a single request shows whether it does.
    """
    filesystem, path = storage.locate(folder)
    step = 10**9 if isinstance(filesystem, pafs.S3FileSystem) else 1  # S3 gives milliseconds in listings only
    try:
        found = storage.retried(filesystem.get_file_info)(pafs.FileSelector(path, recursive=True))
    except OSError:
        return []
    files = ((f"{folder.partition('://')[0]}://{info.path}", info) for info in found if info.is_file and info.size)
    return [(uri, info.size, info.mtime_ns // step * step) for uri, info in files if uri in wanted]


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not from `sys.stdin`, which Python can't close at exit while a thread reads it
    os._exit(1)


if __name__ == "__main__":
    _serve()
