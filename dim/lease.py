"""One writer at a time where no lock can be held: a lease on a folder of an object store.

A writer puts a file of its own there, and then looks whether another's stands beside it: of two that come at once, one
at least sees the other, since stores list whatever has been written. It renews its file as long as it lives. One that
was not renewed for `SECONDS`, by the store's own clock, is a dead writer's and is deleted.

What it can't do: a writer that is held up for longer than that (a suspended machine) learns at its next renewal that it
was taken for dead, and stops; until then, two write.
"""

import contextlib
import json
import logging
import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator

import pyarrow.fs as pafs

from dim import files
from dim.errors import JobFailed, UserError

log = logging.getLogger(__name__)

SECONDS = 60.0
RENEWED = 15.0  # seconds between renewals
TRIES = 3  # two that come at once both step back
PREFIX = ".lease-"


@contextlib.contextmanager
def held(folder: str, holder: str) -> Iterator[None]:
    """Holds the lease on `folder` for `holder`, in words.

    Raises UserError, with the other's words, where it is another's; JobFailed once it was lost to another.
    """
    lease = _Lease(folder, holder)
    lease.take()
    renewing = threading.Thread(target=lease.renew, name="lease", daemon=True)
    renewing.start()
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        if lease.lost:
            raise JobFailed(_LOST.format(folder)) from error
        raise
    finally:
        lease.ended.set()
        renewing.join()
        if not lease.lost:
            files.delete(lease.own)
    if lease.lost:
        raise JobFailed(_LOST.format(folder))


_LOST = "this job could not renew its lease on {!r} in time, and another may write it now; run the same command again"


class _Lease:
    def __init__(self, folder: str, holder: str) -> None:
        self._folder = folder
        self._content = json.dumps({"holder": holder}).encode()
        self.own = files.join(folder, f"{PREFIX}{uuid.uuid4().hex}")
        self.ended = threading.Event()
        self.lost = False

    def take(self) -> None:
        for _ in range(TRIES):
            files.write_bytes(self.own, self._content)
            others = self._alive()
            if not others:
                return
            holder = _holder(others[0])
            files.delete(self.own)
            time.sleep(random.uniform(0.1, 1.0))
        raise UserError(f"{self._folder!r} is being written by {holder}; wait for it or stop it")

    def _alive(self) -> list[str]:
        """The files of other writers, after those of dead ones were deleted."""
        filesystem, path = files.locate(self._folder)
        found = filesystem.get_file_info(pafs.FileSelector(path))
        written = {info.base_name: info.mtime_ns for info in found if info.base_name.startswith(PREFIX)}
        now = written.pop(self.own.rpartition("/")[2])
        alive = []
        for name, since in written.items():
            uri = files.join(self._folder, name)
            if now - since <= SECONDS * 1e9:
                alive.append(uri)
            else:
                log.info("took %r over from %s, which is dead", self._folder, _holder(uri))
                files.delete(uri)
        return alive

    def renew(self) -> None:
        last = time.monotonic()
        while not self.ended.wait(RENEWED):
            with contextlib.suppress(OSError, JobFailed):  # the store may answer next time
                if not files.exists(self.own):
                    break  # another took it for dead
                files.write_bytes(self.own, self._content)
                last = time.monotonic()
            if time.monotonic() - last > SECONDS - RENEWED:
                break
        if not self.ended.is_set():
            self.lost = True
            os.kill(os.getpid(), signal.SIGINT)  # ends the job wherever it is


def _holder(uri: str) -> str:
    try:
        return str(files.read_json(uri)["holder"])
    except (UserError, OSError, KeyError, TypeError):  # it ended just now
        return "another job"
