"""A lease on a folder of an object store. It gives the folder one writer at a time, as stores have no locks.

A writer puts its own lease file into the folder, and then lists the folder for lease files of others. Stores list every
completed write, so of two writers that come at the same time at least one sees the other. A writer renews its file
while it lives. A file that was not renewed for `SECONDS`, by the store's clock, belongs to a dead writer, and the next
writer deletes it.

A writer that doesn't renew its lease in time has lost it for good. From then on its guards (`dim.io.storage`) refuse
each write. They use a clock that also runs while the machine sleeps, so they stop a writer that has just woken. A
process that writes for the holder checks before each write that the lease file still exists (`Claim`). The main thread
of a writer that has lost its lease gets a signal; if it doesn't stop, the process ends after `GRACE` seconds.

Two gaps remain, which only the store could close. A request that was under way when the writer lost its lease may still
be carried out. And a virtual machine that is paused together with its clocks doesn't notice the pause.
"""

import contextlib
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
RENEW_SECONDS = 15.0  # between renewals; the holder gives a lease up this long before others see it expire
GRACE = 30.0  # seconds from the loss of the lease to the end of the process
TRIES = 3  # to take a lease: two writers that come at the same time may both give way
PREFIX = ".lease-"
# Not SIGINT: a shell's background processes ignore it, and Ray Train has its own handler for it.
LOST_SIGNAL = signal.SIGUSR1


@dataclass(frozen=True)
class Claim:
    """What another process needs to check a lease on `folder`: `own` is the URI of the holder's lease file."""

    folder: str
    own: str

    def require(self) -> None:
        """Raises JobFailed if the lease is no longer held."""
        if not files.exists(self.own):
            raise JobFailed(_lost(self.folder))


_claims: list[Claim] = []


def claims() -> tuple[Claim, ...]:
    """The leases that this process holds, to be given to processes that write for it (see `under`)."""
    return tuple(_claims)


@contextlib.contextmanager
def under(held_elsewhere: Sequence[Claim]) -> Iterator[None]:
    """Within the block, this process may write into the folders of these leases only while they are held."""
    with contextlib.ExitStack() as stack:
        for claim in held_elsewhere:
            stack.enter_context(storage.guard_writes(claim.folder, claim.require))
        yield


@contextlib.contextmanager
def held(folder: str, holder: str) -> Iterator[None]:
    """Holds the lease on `folder`, in an object store, within the block. `holder` describes this writer to others.

    Raises UserError, with the other's `holder`, if another writer holds the lease, and JobFailed if the lease was lost.
    """
    lease = _Lease(folder, holder)
    lease.take()
    try:
        with storage.guard_writes(folder, lease.require), _interruptible(), lease.renewed():
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
def _interruptible() -> Iterator[None]:
    """Within the block, LOST_SIGNAL raises KeyboardInterrupt in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can set handlers
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
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # this clock runs while the machine sleeps


class _Lease:
    def __init__(self, folder: str, holder: str) -> None:
        self._content = {"holder": holder}
        self.claim = Claim(folder, files.join(folder, f"{PREFIX}{uuid.uuid4().hex}"))
        self._ended = threading.Event()  # set when the block of `renewed` ends
        self._deleted = False  # whether another writer, which took this one for dead, has deleted the lease file
        self._until = 0.0  # until this time of `_now`, no other writer can take this one for dead

    @property
    def lost(self) -> bool:
        """Whether another writer may hold the lease."""
        return self._deleted or _now() > self._until

    def require(self) -> None:
        """Raises JobFailed if the lease is lost."""
        if self.lost:
            raise JobFailed(_lost(self.claim.folder))

    def take(self) -> None:
        """Writes the lease file. Raises UserError if another writer lives."""
        for _ in range(TRIES):
            begun = _now()
            files.write_json(self.claim.own, self._content)
            others = self._living_others()
            if not others:
                self._until = begun + SECONDS - RENEW_SECONDS
                return
            holder = _holder(others[0])
            files.delete(self.claim.own)
            time.sleep(random.uniform(0.1, 1.0))
        raise UserError(f"{self.claim.folder!r} is being written by {holder}; wait for it or stop it")

    def _living_others(self) -> list[str]:
        """The lease files of other writers. Deletes those of dead ones."""
        filesystem, path = files.locate(self.claim.folder)
        found = filesystem.get_file_info(pafs.FileSelector(path))
        written = {info.base_name: info.mtime_ns for info in found if info.base_name.startswith(PREFIX)}
        now = written.pop(self.claim.own.rpartition("/")[2])
        alive = []
        for name, since in written.items():
            uri = files.join(self.claim.folder, name)
            if now - since <= SECONDS * 1e9:
                alive.append(uri)
            else:
                log.info("took over %r from a dead writer, %s", self.claim.folder, _holder(uri))
                files.delete(uri)
        return alive

    @contextlib.contextmanager
    def renewed(self) -> Iterator[None]:
        """Renews the lease within the block. If the lease is lost, ends the block, or else the process."""
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
        while not self.lost and not self._ended.wait(RENEW_SECONDS):
            with contextlib.suppress(OSError, JobFailed):  # the store may answer the next time
                self._renew()
        if self._ended.is_set():
            return
        if signal.getsignal(LOST_SIGNAL) is signal.default_int_handler:
            signal.pthread_kill(threading.main_thread().ident or 0, LOST_SIGNAL)
        if not self._ended.wait(GRACE):  # the main thread may be in native code that doesn't return
            log.error("failed: %s", _lost(self.claim.folder))
            os._exit(1)  # Ray's processes and the decoders end with their parent

    def _renew(self) -> None:
        if not files.exists(self.claim.own):
            self._deleted = True
            return
        begun = _now()
        files.write_json(self.claim.own, self._content)
        if not self.lost:  # else another writer may have seen the old file as expired before this renewal
            self._until = begun + SECONDS - RENEW_SECONDS


def _holder(uri: str) -> str:
    try:
        return str(files.read_json(uri)["holder"])
    except (UserError, OSError, KeyError, TypeError):  # that writer has just ended and deleted its file
        return "another job"
