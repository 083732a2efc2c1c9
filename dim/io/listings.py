"""Sizes and times of many objects of a store, from its listings: a request tells of a thousand objects.

Which listings are worth it can't be known before: a folder may hold a hundred million objects beside those that are
wanted, and Arrow gives a listing whole or not at all. So a process of its own lists, with limited memory, while this
one asks for the objects one by one, from the other end, and ends it once all are known. Thus listings never cost more
time than asking does, however large a folder is. What can't be listed, as without the right to, is asked for.
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

FEWEST = 10_000  # objects for which a process is started: they take 1 s at least, one by one
PAGE = 1000  # objects that a request lists
_BUCKET = 2  # slashes in the URI of a bucket
MEMORY = 4 * 2**30  # bytes of the process that lists: some ten million objects


def infos(uris: Sequence[str], ask: Callable[[str], pafs.FileInfo]) -> dict[str, pafs.FileInfo]:
    """What stands at each of `uris`, all of stores, as `ask` says it of one."""
    with _arriving(uris) as known:
        # From the last on, as the listings begin with the first.
        left = (uri for uri in reversed(dict.fromkeys(uris)) if uri not in known)
        for uri, info in storage.at_once(lambda uri: (uri, ask(uri)), left):
            known[uri] = info
        return known


@contextlib.contextmanager
def _arriving(uris: Sequence[str]) -> Iterator[dict[str, pafs.FileInfo]]:
    """What listings say of the files at `uris`; more arrives while the block runs."""
    known: dict[str, pafs.FileInfo] = {}
    folders: list[str] = []
    if len(uris) >= FEWEST:
        folders = worth_listing(uris)
        log.info("asking the store about %d files, and for lists of %d folders", len(uris), len(folders))
    if not folders:
        yield known
        return
    with processes.started(__name__, subprocess.DEVNULL) as process:
        assert process.stdin and process.stdout
        question = {"folders": folders, "uris": uris}
        thread = threading.Thread(target=_receive, args=(question, process.stdin, process.stdout, known))
        thread.start()
        try:
            yield known
        finally:
            process.kill()
            thread.join()
            with contextlib.suppress(BrokenPipeError):  # part of the question may not have been written
                process.stdin.close()


def worth_listing(uris: Iterable[str]) -> list[str]:
    """The deepest folders below which at least PAGE of `uris` lie; those that lie below another such don't count."""
    counts = Counter(uri.rpartition("/")[0] for uri in uris)
    worth = []
    for depth in range(max((folder.count("/") for folder in counts), default=0), _BUCKET - 1, -1):
        for folder in [folder for folder in counts if folder.count("/") == depth]:
            if counts[folder] >= PAGE:
                worth.append(folder)
            elif depth > _BUCKET:
                counts[folder.rpartition("/")[0]] += counts[folder]
    return worth


def _receive(question: Any, to: IO[bytes], back: IO[bytes], known: dict[str, pafs.FileInfo]) -> None:
    with contextlib.suppress(BrokenPipeError, ValueError):  # it was ended, or has died
        to.write(json.dumps(question).encode() + b"\n")
        to.flush()
        for line in back:
            for uri, size, mtime_ns in json.loads(line):
                path = uri.partition("://")[2]
                known[uri] = pafs.FileInfo(path, pafs.FileType.File, size=size, mtime_ns=mtime_ns)


def _serve() -> None:
    question = json.loads(sys.stdin.buffer.readline())
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    listed = partial(_listed, wanted=set(question["uris"]))
    for found in storage.at_once(listed, question["folders"]):
        print(json.dumps(found), flush=True)


def _listed(folder: str, wanted: set[str]) -> list[tuple[str, int, int]]:
    """URI, size and modification time (ns) of the `wanted` files below `folder`, as the store says them of each alone.

    What is empty is left out: it may be a folder, and only the store's answer about it alone says so.
    """
    filesystem, path = storage.locate(folder)
    step = 10**9 if isinstance(filesystem, pafs.S3FileSystem) else 1  # S3 says milliseconds in listings only
    try:
        found = storage.patient(filesystem.get_file_info)(pafs.FileSelector(path, recursive=True))
    except OSError:
        return []
    files = ((f"{folder.partition('://')[0]}://{info.path}", info) for info in found if info.is_file and info.size)
    return [(uri, info.size, info.mtime_ns // step * step) for uri, info in files if uri in wanted]


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not by `sys.stdin`, which can't be closed at the end while a thread reads from it
    os._exit(1)


if __name__ == "__main__":
    _serve()
