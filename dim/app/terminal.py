"""Controls the terminal of a running job: stderr shows the job's log, and stdout stays free for the result."""

import contextlib
import io
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any

from dim.app import log_handler, logs, native_stderr
from dim.errors import GateNotMet, UserError

log = logging.getLogger(__name__)


@contextlib.contextmanager
def of_job(verbose: bool) -> Iterator[None]:
    """Within the block, log records go to stderr. What Python code prints goes to stderr, too, and never to stdout.

    The C++ code of Ray and TensorFlow writes to file descriptor 2 directly, and no setting stops it. Such lines are
    shown only if the job is `verbose`, fails or dies. If the log is JSON, each line that is shown becomes a log record.
    """
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(open(os.dup(2), "w", encoding="utf-8", errors="replace", buffering=1))
        if not verbose:
            stack.enter_context(_kept(own))
        handler = log_handler.Handler(own)
        logs.set_up(handler, logs.job())
        logging.getLogger().addHandler(handler)
        stack.callback(handler.close)
        stack.callback(logging.getLogger().removeHandler, handler)
        stack.enter_context(handler.repeating())
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
    """A text stream whose lines become log records, for code that prints instead of logging."""

    def __init__(self) -> None:
        self._local = threading.local()  # per thread: `begun`, its unfinished line; `logging`, whether it logs a line

    def write(self, text: str) -> int:
        """Logs each complete line, and keeps an incomplete last line for the next call."""
        *lines, self._local.begun = (getattr(self._local, "begun", "") + text).split("\n")
        if getattr(self._local, "logging", False):  # an error of the log's handler must not come back
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
    keeper = subprocess.Popen(  # a session of its own: neither Ctrl-C nor the end of a process group reaches it
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
    """Makes file descriptor 2 a copy of `descriptor` within the block, and closes `descriptor`."""
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
    thread.join(1)  # seconds; a child process may hold its end of the pipe open for ever
