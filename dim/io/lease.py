"""Leases on folders of an object store: a lease ensures that a folder has only one writer, as stores have no locks.

A writer first puts a lease file of its own into the folder, and then lists the lease files of other writers. If one of
them is alive, the writer deletes its own file and tries again. Stores list every completed write, so if two writers
come at the same time, at least one of them sees the other's file. A writer renews its lease file as long as it lives.
If a lease file is older than `SECONDS`, by the store's clock, its writer is dead, and the next writer deletes the file.

A writer that doesn't renew its lease in time has lost it for good. From then on, its guard (`storage.guard_writes`)
refuses each write. The guard uses a clock that also runs while the machine sleeps, so it stops a writer on a machine
that has just woken. Other processes may write for the holder of a lease; each checks before a write that the lease file
still exists (`Claim`). When a lease is lost, the main thread of its holder gets a signal. If the thread doesn't stop
then, the process ends after `GRACE` seconds.

Two gaps remain, which only the store could close. The store may still carry out a request that was under way when the
writer lost its lease. And a virtual machine that is paused together with its clocks doesn't notice the pause.
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

from dim.errors import InUse, JobFailed, UserError
from dim.io import files, storage

log = logging.getLogger(__name__)

SECONDS = 60.0  # from the last renewal until the lease expires for other writers
RENEW_SECONDS = 15.0  # between renewals; the holder also gives up a lease so long before it expires for others
GRACE = 30.0  # seconds from the loss of the lease to the end of the process
TRIES = 3  # attempts to take a lease, as two writers that come at the same time may both give way
PREFIX = ".lease-"  # the names of lease files begin with this
# Not SIGINT, because a shell's background processes ignore it and Ray Train has a handler of its own for it.
LOST_SIGNAL = signal.SIGUSR1


@dataclass(frozen=True)
class Claim:
    """Tells another process which lease to check. `own` is the URI of the lease file in `folder`."""

    folder: str
    own: str

    def require(self) -> None:
        """Raises JobFailed if the lease is no longer held."""
        if not files.exists(self.own):
            raise JobFailed(_lost(self.folder))


_claims: list[Claim] = []


def claims() -> tuple[Claim, ...]:
    """The claims of this process. Other processes that write for this process pass them to `under`."""
    return tuple(_claims)


@contextlib.contextmanager
def under(held_elsewhere: Sequence[Claim]) -> Iterator[None]:
    """Within the block, this process may write into the folder of a claim only while the claim's lease is held."""
    with contextlib.ExitStack() as stack:
        for claim in held_elsewhere:
            stack.enter_context(storage.guard_writes(claim.folder, claim.require))
        yield


@contextlib.contextmanager
def held(folder: str, holder: str) -> Iterator[None]:
    """Holds the lease on `folder`, in an object store, within the block. `holder` names this writer to others.

    Raises InUse if another writer has the lease (the message says who), and JobFailed if this writer lost the
    lease.
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
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # this clock also runs while the machine sleeps


class _Lease:
    def __init__(self, folder: str, holder: str) -> None:
        self._content = {"holder": holder}
        self.claim = Claim(folder, files.join(folder, f"{PREFIX}{uuid.uuid4().hex}"))
        self._ended = threading.Event()  # set when the block of `renewed` ends
        self._deleted = False  # whether the lease file is gone: another writer took this one for dead
        self._until = 0.0  # time, by `_now`, until which no other writer can take this one for dead

    @property
    def lost(self) -> bool:
        """Whether another writer may hold the lease."""
        return self._deleted or _now() > self._until

    def require(self) -> None:
        """Raises JobFailed if the lease is lost."""
        if self.lost:
            raise JobFailed(_lost(self.claim.folder))

    def take(self) -> None:
        """Writes the lease file. Raises InUse if another writer holds the lease."""
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
        raise _in_use(self.claim.folder, holder)

    def _living_others(self) -> list[str]:
        """Returns the lease files of other writers that live, and deletes those of dead writers."""
        alive, dead = _leases(self.claim.folder, self.claim.own)
        for uri in dead:
            log.info("took over %r from a dead writer, %s", self.claim.folder, _holder(uri))
            files.delete(uri)
        return alive

    @contextlib.contextmanager
    def renewed(self) -> Iterator[None]:
        """Renews the lease within the block. If the lease is lost, interrupts the block, or else ends the process."""
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
            with contextlib.suppress(OSError, JobFailed):  # the store may answer next time
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
        if not self.lost:  # else another writer may have seen the old file expire before this renewal
            self._until = begun + SECONDS - RENEW_SECONDS


def _leases(folder: str, own: str) -> tuple[list[str], list[str]]:
    """The lease files of other writers in `folder`: those of writers that live, and of dead ones.

    `own` is the URI of a file in `folder` that was just written, whose time is the store's clock.
    """
    filesystem, path = files.locate(folder)
    found = filesystem.get_file_info(pafs.FileSelector(path))
    written = {info.base_name: info.mtime_ns for info in found}
    now = written.pop(own.rpartition("/")[2])
    ages = {files.join(folder, name): now - since for name, since in written.items() if name.startswith(PREFIX)}
    alive = [uri for uri, age in ages.items() if age <= SECONDS * 1e9]
    return alive, [uri for uri in ages if uri not in alive]


def require_free(folder: str) -> None:
    """Raises InUse if a writer holds the lease on `folder`. Two processes may call this at the same time."""
    clock = files.join(folder, f".clock-{uuid.uuid4().hex}")
    files.write_json(clock, {})
    try:
        alive, _ = _leases(folder, clock)
    finally:
        files.delete(clock)
    if alive:
        raise _in_use(folder, _holder(alive[0]))


def _in_use(folder: str, holder: str) -> InUse:
    return InUse(f"{folder!r} is being written by {holder}; wait for it or stop it")


def _holder(uri: str) -> str:
    try:
        return str(files.read_json(uri)["holder"])
    except (UserError, OSError, KeyError, TypeError):  # that writer has just ended and deleted its file
        return "another job"
