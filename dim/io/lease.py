"""One writer at a time where no lock can be held: a lease on a folder of an object store.

A writer puts a file of its own there, and then looks whether another's stands beside it: of two that come at once, one
at least sees the other, since stores list whatever has been written. It renews its file as long as it lives. One that
was not renewed for `SECONDS`, by the store's own clock, is a dead writer's and is deleted.

A lease that was not renewed in time is lost, and never renewed: `dim.io.storage` refuses each write of a writer that
has lost it, also of one that has just woken and doesn't know yet, since it goes by a clock that runs on while the
machine sleeps. A process that writes on its behalf (`Claim`) looks for the lease's file before each write. A writer
that goes on in spite of the signal that tells it is ended after `GRACE` seconds.

What no writer can do without the store's help: take back the one request that was under way when it was held up, or
notice that its virtual machine stood still together with all its clocks.
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow.fs as pafs

from dim.errors import JobFailed, UserError
from dim.io import files, storage

log = logging.getLogger(__name__)

SECONDS = 60.0
RENEWED = 15.0  # seconds between renewals; so shortly before it runs out, nothing is written any more
GRACE = 30.0  # seconds from the loss until the process is ended
TRIES = 3  # two that come at once both step back
PREFIX = ".lease-"
# Of its own: Ctrl-C's is ignored by what a shell starts in the background, and is Ray Train's while it trains.
LOST_SIGNAL = signal.SIGUSR1


@dataclass(frozen=True)
class Claim:
    """The lease on `folder` whose file is `own`, as another process sees it."""

    folder: str
    own: str

    def require(self) -> None:
        """Raises JobFailed where the lease is no longer held."""
        if not files.exists(self.own):
            raise JobFailed(_lost(self.folder))


_claims: list[Claim] = []


def claims() -> tuple[Claim, ...]:
    """The leases that this process holds, for a process that writes on its behalf."""
    return tuple(_claims)


@contextlib.contextmanager
def under(held_elsewhere: Sequence[Claim]) -> Iterator[None]:
    """Within the block, this process writes into the folders of these leases only while they are held."""
    with contextlib.ExitStack() as stack:
        for claim in held_elsewhere:
            stack.enter_context(storage.guarded(claim.folder, claim.require))
        yield


@contextlib.contextmanager
def held(folder: str, holder: str) -> Iterator[None]:
    """Holds the lease on `folder` for `holder`, in words.

    Raises UserError, with the other's words, where it is another's; JobFailed once it was lost.
    """
    lease = _Lease(folder, holder)
    lease.take()
    try:
        with storage.guarded(folder, lease.require), _told(), lease.renewed():
            yield
    except BaseException as error:
        if lease.lost:
            raise JobFailed(_lost(folder)) from error
        raise
    finally:
        if not lease.lost:
            files.delete(lease.claim.own)
    lease.require()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Within the block, LOST_SIGNAL ends what the main thread does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no other can set handlers
        return
    before = signal.signal(LOST_SIGNAL, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(LOST_SIGNAL, before or signal.SIG_DFL)


def _lost(folder: str) -> str:
    return (
        f"this job could not renew its lease on {folder!r} in time, and another may write it now; "
        "run the same command again"
    )


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # runs on while the machine sleeps


class _Lease:
    def __init__(self, folder: str, holder: str) -> None:
        self._folder = folder
        self._content = json.dumps({"holder": holder}).encode()
        self.claim = Claim(folder, files.join(folder, f"{PREFIX}{uuid.uuid4().hex}"))
        self._ended = threading.Event()
        self._taken = False
        self._until = 0.0

    @property
    def lost(self) -> bool:
        """Whether another may hold it."""
        return self._taken or _now() > self._until

    def require(self) -> None:
        """Raises JobFailed where the lease is lost."""
        if self.lost:
            raise JobFailed(_lost(self._folder))

    def take(self) -> None:
        for _ in range(TRIES):
            begun = _now()
            files.write_bytes(self.claim.own, self._content)
            others = self._alive()
            if not others:
                self._until = begun + SECONDS - RENEWED
                return
            holder = _holder(others[0])
            files.delete(self.claim.own)
            time.sleep(random.uniform(0.1, 1.0))
        raise UserError(f"{self._folder!r} is being written by {holder}; wait for it or stop it")

    def _alive(self) -> list[str]:
        """The files of other writers, after those of dead ones were deleted."""
        filesystem, path = files.locate(self._folder)
        found = filesystem.get_file_info(pafs.FileSelector(path))
        written = {info.base_name: info.mtime_ns for info in found if info.base_name.startswith(PREFIX)}
        now = written.pop(self.claim.own.rpartition("/")[2])
        alive = []
        for name, since in written.items():
            uri = files.join(self._folder, name)
            if now - since <= SECONDS * 1e9:
                alive.append(uri)
            else:
                log.info("took %r over from %s, which is dead", self._folder, _holder(uri))
                files.delete(uri)
        return alive

    @contextlib.contextmanager
    def renewed(self) -> Iterator[None]:
        """Renews the lease within the block; ends the block, or else the process, once it is lost."""
        thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        thread.start()
        _claims.append(self.claim)
        try:
            yield
        finally:
            _claims.remove(self.claim)
            self._ended.set()
            thread.join()

    def _keep(self) -> None:
        while not self.lost and not self._ended.wait(RENEWED):
            with contextlib.suppress(OSError, JobFailed):  # the store may answer next time
                self._renew()
        if self._ended.is_set():
            return
        if signal.getsignal(LOST_SIGNAL) is signal.default_int_handler:
            signal.pthread_kill(threading.main_thread().ident or 0, LOST_SIGNAL)
        if not self._ended.wait(GRACE):  # it is in native code that doesn't return, say
            log.error("failed: %s", _lost(self._folder))
            os._exit(1)  # Ray's processes and the decoders end with their parent

    def _renew(self) -> None:
        if not files.exists(self.claim.own):
            self._taken = True
            return
        begun = _now()
        files.write_bytes(self.claim.own, self._content)
        if not self.lost:  # else another may have seen the old one as dead before
            self._until = begun + SECONDS - RENEWED


def _holder(uri: str) -> str:
    try:
        return str(files.read_json(uri)["holder"])
    except (UserError, OSError, KeyError, TypeError):  # it ended just now
        return "another job"
