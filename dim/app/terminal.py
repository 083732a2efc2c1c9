"""Who writes to a job's stdout and stderr while it runs: the job alone, one line a log record."""

import contextlib
import io
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

from dim.app import logs, progress

log = logging.getLogger(__name__)


@contextlib.contextmanager
def of_job(verbose: bool) -> Iterator[None]:
    """While a job runs, stderr has its own lines, and stdout nothing.

    What Ray's and TensorFlow's C++ write to file descriptor 2 has no logger and no setting, so it goes nowhere unless
    the job is `verbose`. Where a machine reads the log, each line is a log record, whoever writes it.
    """
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(open(os.dup(2), "w", encoding="utf-8", errors="replace", buffering=1))
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
        if not verbose:
            stack.enter_context(_redirected(os.open(os.devnull, os.O_WRONLY)))
        elif logs.wants_json():
            stack.enter_context(_logged())
        stack.enter_context(contextlib.redirect_stderr(printed))
        stack.enter_context(contextlib.redirect_stdout(printed))  # Ray prints there when a worker dies
        yield


class _Lines(io.TextIOBase):
    """A text stream whose lines become log records: for what is printed by code that knows no logging."""

    def __init__(self) -> None:
        self._local = threading.local()  # each thread's own: the line that it has begun, and whether it is logging one

    def write(self, text: str) -> int:
        """Logs each whole line; what follows the last waits for its end."""
        *lines, self._local.begun = (getattr(self._local, "begun", "") + text).split("\n")
        if getattr(self._local, "logging", False):  # that the log can't be written can't be logged
            return len(text)
        self._local.logging = True
        try:
            for line in filter(str.strip, lines):
                log.info("%s", line)
        finally:
            self._local.logging = False
        return len(text)


@contextlib.contextmanager
def _redirected(descriptor: int) -> Iterator[None]:
    """Within the block, file descriptor 2 is `descriptor`, which is closed."""
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
    """Within the block, the lines that native code writes to file descriptor 2 become log records."""
    read, write = os.pipe()

    def follow() -> None:
        with open(read, encoding="utf-8", errors="replace") as lines:
            for line in filter(str.strip, lines):
                log.info("%s", line.rstrip("\n"))

    thread = threading.Thread(target=follow, name="stderr", daemon=True)
    thread.start()
    with _redirected(write):
        yield
    thread.join(1)  # a child may hold its end of the pipe for longer
