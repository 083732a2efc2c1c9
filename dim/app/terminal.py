"""Keeps stdout and stderr of a running job free of everything but the job's own log lines."""

import contextlib
import io
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any

from dim.app import logs, native_stderr, progress
from dim.errors import GateNotMet, UserError

log = logging.getLogger(__name__)


@contextlib.contextmanager
def of_job(verbose: bool) -> Iterator[None]:
    """Within the block, only the job's log records reach stderr, and nothing reaches stdout.

    The C++ code of Ray and TensorFlow writes to file descriptor 2 directly, and no setting stops it. These lines are
    shown only if the job is `verbose`, fails or dies. If the log is JSON, each printed line becomes a log record.
    """
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(open(os.dup(2), "w", encoding="utf-8", errors="replace", buffering=1))
        if not verbose:
            stack.enter_context(_kept(own))
        handler = progress.Handler(own)
        logs.set_up(handler, logs.job())
        logging.getLogger().addHandler(handler)
        stack.callback(handler.close)
        stack.callback(logging.getLogger().removeHandler, handler)
        logging.getLogger("dim").setLevel(logging.DEBUG if verbose else logging.INFO)
        printed: Any = own
        if logs.wants_json():
            logging.captureWarnings(True)
            stack.callback(logging.captureWarnings, False)
            printed = _Lines()
            if verbose:
                stack.enter_context(_logged())
        stack.enter_context(contextlib.redirect_stderr(printed))
        stack.enter_context(contextlib.redirect_stdout(printed))  # Ray prints to stdout when a worker dies
        yield


class _Lines(io.TextIOBase):
    """A text stream whose lines become log records, for code that prints and doesn't log."""

    def __init__(self) -> None:
        self._local = threading.local()  # of each thread, `begun`: its unfinished line; `logging`: it is logging a line

    def write(self, text: str) -> int:
        """Logs each complete line, and keeps the rest for the next call."""
        *lines, self._local.begun = (getattr(self._local, "begun", "") + text).split("\n")
        if getattr(self._local, "logging", False):  # the log's handler prints an error of its own
            return len(text)
        self._local.logging = True
        try:
            for line in filter(str.strip, lines):
                log.info("%s", line)
        finally:
            self._local.logging = False
        return len(text)


@contextlib.contextmanager
def _kept(own: IO[str]) -> Iterator[None]:
    """Within the block, a second process keeps what native code writes. If the job fails, `own` gets the last lines."""
    read, write = os.pipe()
    command = [sys.executable, "-I", "-S", native_stderr.__file__, str(read), sys.argv[0]]
    keeper = subprocess.Popen(  # in a new session, which Ctrl-C and the end of a process group don't reach
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=own, pass_fds=[read], start_new_session=True
    )
    os.close(read)
    ending = native_stderr.QUIET
    with _redirected(write):
        try:
            yield
        except (UserError, GateNotMet, KeyboardInterrupt):
            raise
        except BaseException:
            ending = b""
            raise
        finally:
            keeper.communicate(ending)


@contextlib.contextmanager
def _redirected(descriptor: int) -> Iterator[None]:
    """Within the block, file descriptor 2 is a copy of `descriptor`. Closes `descriptor`."""
    before = os.dup(2)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """Within the block, each line that native code writes to file descriptor 2 becomes a log record."""
    read, write = os.pipe()

    def follow() -> None:
        with open(read, encoding="utf-8", errors="replace") as lines:
            for line in filter(str.strip, lines):
                log.info("%s", line.rstrip("\n"))

    thread = threading.Thread(target=follow, name="stderr", daemon=True)
    thread.start()
    with _redirected(write):
        yield
    thread.join(1)  # not longer: a child may keep its end of the pipe open
