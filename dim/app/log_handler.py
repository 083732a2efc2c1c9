"""The handler of a job's log. It is never silent for longer than `SECONDS` while the job runs.

On a terminal, each line of progress overwrites the one before it. Elsewhere, progress is written once in `SECONDS`. If
nothing is logged for so long, a thread repeats what was logged last, and says how old it is: "starting Ray … 15 s" or
"embedding: 320 of 1,687 images; unchanged for 15 s".
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from dim.app import logs
from dim.app.progress import duration

SECONDS = 5.0
SHOWN_AGE = 1.0  # seconds; what is younger is news
REPEATED_CHARACTERS = 40  # of a line that is no progress
_ERASED = "\r\x1b[K"  # clears the current line of a terminal


class Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes log records to `stream`, also those that workers send, which a thread hands over."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._live = stream.isatty() and os.environ.get("TERM") != "dumb" and not logs.wants_json()
        self._open_line = ""  # the line of progress on the terminal, which has no newline yet
        self._written = time.monotonic()
        # What is repeated, and when it was logged: progress or, if a stage is done, the last line.
        self._news: tuple[logging.LogRecord, float] | None = None
        self._before: list[tuple[logging.LogRecord, float] | None] = []  # the news before each step that is going on

    def emit(self, record: logging.LogRecord) -> None:
        """Writes `record`, but not the end of a short step, nor progress that comes too soon after the last line."""
        finished, now = getattr(record, "finished", None), time.monotonic()
        short = getattr(record, "step_seconds", SECONDS) < SECONDS
        if finished is False and not _counts(record):
            self._before.append(self._news)
        before = self._before.pop() if hasattr(record, "step_seconds") and self._before else None
        if short:
            self._news = before
        elif finished is not None or not self._is_going_on():
            self._news = record, now
        if self._live:
            self._overwrite("" if short else self.format(record), finished)
        elif not short and (finished is not False or now - self._written >= SECONDS):
            super().emit(record)
        else:
            return
        self._written = now

    @contextlib.contextmanager
    def repeating(self) -> Iterator[None]:
        """Within the block, a thread repeats the news when it is time."""
        ended = threading.Event()

        def repeat() -> None:
            while not ended.wait(self.repeat_if_due()):
                pass

        thread = threading.Thread(target=repeat, name="log", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def repeat_if_due(self) -> float:
        """Repeats the news if the last line was written `SECONDS` ago. Returns the seconds until it is due again."""
        with self.lock or contextlib.nullcontext():
            now = time.monotonic()
            if (left := self._written + SECONDS - now) > 0:
                return left
            self._written = now
            if self._news is not None:
                record = _repeated(self._news[0], now - self._news[1])
                if self._live:
                    self._overwrite(self.format(record), finished=False)
                else:
                    super().emit(record)
            return SECONDS

    def _is_going_on(self) -> bool:
        """Whether the news is of a stage that is not finished."""
        return self._news is not None and getattr(self._news[0], "finished", None) is False

    def _overwrite(self, line: str, finished: bool | None) -> None:
        if finished is None:
            self._open_line = self._open_line if self._is_going_on() else ""
            written = f"{line}\n{self._open_line}"
        else:
            columns = os.get_terminal_size(self.stream.fileno()).columns or 80
            line = line[: columns - 1]  # a longer line would wrap, and could not be overwritten
            self._open_line = "" if finished else line
            written = f"{line}\n" if finished and line else line
        self.stream.write(_ERASED + written)
        self.flush()

    def close(self) -> None:
        """Ends the line of progress, so that later output begins on a new line."""
        if self._open_line:
            self._open_line = ""
            self.stream.write("\n")
            self.flush()
        super().close()


def _counts(record: logging.LogRecord) -> bool:
    return hasattr(record, "done")


def _repeated(news: logging.LogRecord, age: float) -> logging.LogRecord:
    message = news.getMessage()
    if not hasattr(news, "finished") and len(message) > REPEATED_CHARACTERS:
        message = f"{message[:REPEATED_CHARACTERS].rstrip()}…"
    if age >= SHOWN_AGE:
        message += f"{'; unchanged for' if _counts(news) else ' …'} {duration(age)}"
    changed = {"msg": message, "args": None, "created": time.time(), "exc_info": None, "exc_text": None}
    return logging.makeLogRecord(vars(news) | changed)
