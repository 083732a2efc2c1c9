"""What jobs count, as metrics of Ray's: every node exports them to Prometheus, beside Ray's of GPUs, CPUs and memory.

`ray_dim_done_total` and `ray_dim_errors_total` count units of work, photos mostly, and `ray_dim_waiting` says how many
are left. Each has the tags `program`, such as "train" (Prometheus has its own tag `job`), `JobId`, by which Ray's
metrics and dashboard name the job, and `stage`, beside Ray's tags of node and process.

How far a job is: a line that is written over on a terminal, a line every few seconds elsewhere.

A stage tells its progress by log records, so that they travel from a worker as all it has to say does; what becomes of
them, the job's own handler decides. Such a record has the attribute `finished`.
"""

import contextlib
import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TextIO, TypeVar

from dim.app import logs

# All that there are: each value of a tag is a series of its own.
Stage = Literal[
    "checking",
    "computing the frozen layers",
    "embedding",
    "evaluating",
    "exporting",
    "extracting",
    "finding neighbours",
    "fitting",
    "indexing",
    "mining",
    "reading photos for the page",
    "summing",
]

TAGS = ("program", "JobId", "stage")
_program: str | None = None


@contextlib.contextmanager
def counting_for(program: str) -> Iterator[None]:
    """Within the block, what this process counts is counted for `program`. A job's own process needs not say so."""
    global _program  # noqa: PLW0603  (of the process, as its metrics are)
    before, _program = _program, program
    try:
        yield
    finally:
        _program = before


@functools.cache
def _instruments() -> tuple[Any, Any, Any]:
    from ray.util.metrics import Counter, Gauge  # noqa: PLC0415  (not every job has a Ray)

    return (
        Counter("dim_done", "Units of work done, photos mostly", TAGS),
        Counter("dim_errors", "Units of work that ended in an error", TAGS),
        Gauge("dim_waiting", "Units of work that are left", TAGS),
    )


def tell(stage: Stage, done: int, errors: int, waiting: int) -> None:
    """Counts `done` more units of `stage`, `errors` of them failed; `waiting` are left. Without a Ray, nothing."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    counted, failed, left = _instruments()
    tags = {"program": _program or logs.job(), "JobId": ray.get_runtime_context().get_job_id(), "stage": stage}
    if done:
        counted.inc(done, tags)
    if errors:
        failed.inc(errors, tags)
    left.set(waiting, tags)


T = TypeVar("T")

log = logging.getLogger(__name__)

SECONDS_BETWEEN_RECORDS = 0.2
SECONDS_BETWEEN_LINES = 5.0  # where they stay
_ERASED = "\r\x1b[K"


class Progress:
    """A stage of `total` units of work: "embedding: 320 of 1,687 images, 13.1 images/s, 1 error, 1 min 44 s left".

    `errors`: a unit may end in an error; they are told then, also while there is none. `epoch`: the stage's, from 1.
    """

    def __init__(
        self, stage: Stage, total: int, unit: str = "images", *, errors: bool = False, epoch: int | None = None
    ) -> None:
        self._stage, self._total, self._unit, self._epoch = stage, total, unit, epoch
        self._done, self._errors = 0, 0 if errors else None
        self._started = time.monotonic()
        self._told = 0.0
        self._first: tuple[float, int] | None = None

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return time.monotonic() - self._started

    def add(self, count: int = 1, errors: int = 0) -> None:
        """Counts `count` more units as done, `errors` of which ended in an error."""
        now = time.monotonic()
        self._done += count
        if self._errors is not None:
            self._errors += errors
        tell(self._stage, count, errors, self._total - self._done)
        finished = self._done >= self._total
        if finished or now - self._told >= SECONDS_BETWEEN_RECORDS:
            self._told = now
            counts = {"stage": self._stage, "done": self._done, "total": self._total, "errors": self._errors or 0}
            which, epoch = ("", {}) if self._epoch is None else (f" epoch {self._epoch}", {"epoch": self._epoch})
            extra = {"finished": finished, **counts, **epoch}
            log.info("%s%s: %s", self._stage, which, ", ".join(self._parts(now)), extra=extra)
        # What came before the first units is start-up, and says nothing of the time left.
        self._first = self._first or (now, self._done)

    def _parts(self, now: float) -> list[str]:
        parts = [f"{self._done:,} of {self._total:,} {self._unit}"]
        if self._errors is not None:
            parts.append(f"{self._errors:,} error{'' if self._errors == 1 else 's'}")
        since, before = (self._started, 0) if self._done >= self._total else self._first or (now, self._done)
        if now > since and self._done > before:
            rate = (self._done - before) / (now - since)
            left = max(0, self._total - self._done) / rate
            parts += [f"{rate:,.1f} {self._unit}/s", f"{duration(left)} left" if left else duration(now - since)]
        return parts


def told(parts: Iterable[T], size: Callable[[T], int], stage: Stage, total: int, unit: str = "images") -> Iterator[T]:
    """`parts`, whose sizes sum to `total`, the progress told as each has been used."""
    progress = Progress(stage, total, unit)
    for part in parts:
        yield part
        progress.add(size(part))


def duration(seconds: float) -> str:
    """`seconds` as a person says it: "48 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes log records to `stream`: on a terminal, a line of progress is written over by the next."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._live = stream.isatty() and os.environ.get("TERM") != "dumb" and not logs.wants_json()
        self._standing = ""  # the line of progress on the terminal, whose end is not written
        self._written = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Writes `record`, unless it is progress that comes too soon after what was written last."""
        finished = getattr(record, "finished", None)
        if self._live:
            self._write_over(self.format(record), finished)
        elif finished is not False or time.monotonic() - self._written >= SECONDS_BETWEEN_LINES:
            self._written = time.monotonic()
            super().emit(record)

    def _write_over(self, line: str, finished: bool | None) -> None:
        if finished is None:
            written = f"{line}\n{self._standing}"
        else:
            columns = os.get_terminal_size(self.stream.fileno()).columns or 80
            line = line[: columns - 1]  # a longer one would wrap, and stay
            self._standing = "" if finished else line
            written = f"{line}\n" if finished else line
        self.stream.write(_ERASED + written)
        self.flush()

    def close(self) -> None:
        """Ends the line of progress that stands, so that what comes next has its own."""
        if self._standing:
            self._standing = ""
            self.stream.write("\n")
            self.flush()
        super().close()
