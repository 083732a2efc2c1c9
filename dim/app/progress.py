"""The progress of a job: log records for people, and metrics that Ray exports to Prometheus.

Each stage of a job counts its units of work with `Progress`, which writes log records. `step` is for a stage without
units to count. The attribute `finished` of a record says whether the stage is done. Records of workers reach the job,
too. `dim.app.log_handler` writes them for people.

Every node exports these metrics together with Ray's own. `ray_dim_done_total` counts the units of work that are done,
mostly photos, including failed units. `ray_dim_errors_total` counts the failed units. `ray_dim_waiting` is the number
of units left. Ray gives each metric tags for node and process. dim adds the tags `program`, such as "train"; `JobId`,
as in Ray's dashboard; and `stage`. (Prometheus itself has a tag `job`, so dim's tag is not called that.)
"""

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeVar

from dim.app import logs

# The list is fixed, because each value of a tag makes a time series of its own.
Stage = Literal[
    "checking", "computing the frozen layers", "embedding", "evaluating", "exporting", "extracting",
    "finding neighbours", "fitting", "grouping", "importing", "indexing", "matching", "mining",
    "reading photos for the page", "searching", "summing",
]  # fmt: skip

T = TypeVar("T")
log = logging.getLogger(__name__)

SECONDS_BETWEEN_RECORDS = 0.2


class Progress:
    """Counts the units of a stage: "embedding: 320 of 1,687 images, 1 error, 13.1 images/s, 1 min 44 s left".

    With `errors`, units may fail, and the line always has their number. `epoch` is the number of an epoch, from 1. The
    first record is made at once: it may be long before the first units are done.
    """

    def __init__(
        self, stage: Stage, total: int, unit: str = "images", *, errors: bool = False, epoch: int | None = None
    ) -> None:
        self._stage, self._total, self._unit, self._epoch = stage, total, unit, epoch
        self._done, self._errors = 0, 0 if errors else None
        self._started = time.monotonic()
        self._last_record = 0.0
        self._first: tuple[float, int] | None = None
        if total:
            self._log(self._started)

    @property
    def seconds(self) -> float:
        """The seconds since the stage began."""
        return time.monotonic() - self._started

    def add(self, count: int = 1, errors: int = 0) -> None:
        """Counts `count` more units as done, `errors` of which failed."""
        now = time.monotonic()
        self._done += count
        if self._errors is not None:
            self._errors += errors
        _export(self._stage, count, errors, self._total - self._done)
        if self._done >= self._total or now - self._last_record >= SECONDS_BETWEEN_RECORDS:
            self._last_record = now
            self._log(now)
        # The rate is measured after the first units: the slow start-up before them says nothing about the time left.
        self._first = self._first or (now, self._done)

    def _log(self, now: float) -> None:
        counts = {"stage": self._stage, "done": self._done, "total": self._total, "errors": self._errors or 0}
        which, epoch = ("", {}) if self._epoch is None else (f" epoch {self._epoch}", {"epoch": self._epoch})
        speed = self._speed(now)
        extra = {"finished": self._done >= self._total, **counts, "unit": self._unit, **epoch, **speed}
        log.info("%s%s: %s", self._stage, which, ", ".join(self._parts(now, **speed)), extra=extra)

    def _speed(self, now: float) -> dict[str, float]:
        """The `rate` in units a second and the `seconds_left`; nothing if they are not known yet."""
        since, before = (self._started, 0) if self._done >= self._total else self._first or (now, self._done)
        if now <= since or self._done <= before:
            return {}
        rate = (self._done - before) / (now - since)
        left = max(0, self._total - self._done) / rate
        return {"rate": round(rate, 3), "seconds_left": round(left, 1)}

    def _parts(self, now: float, rate: float | None = None, seconds_left: float = 0) -> list[str]:
        parts = [f"{self._done:,} of {self._total:,} {self._unit}"]
        if self._errors is not None:
            parts.append(f"{self._errors:,} error{'' if self._errors == 1 else 's'}")
        if rate is not None:
            left = f"{duration(seconds_left)} left" if self._done < self._total else duration(now - self._started)
            parts += [f"{rate:,.1f} {self._unit}/s", left]
        return parts


def with_progress(
    parts: Iterable[T], size: Callable[[T], int], stage: Stage, total: int, unit: str = "images"
) -> Iterator[T]:
    """Yields `parts`. Counts the `size` of a part, in units, as done once the caller asks for the next part."""
    progress = Progress(stage, total, unit)
    for part in parts:
        yield part
        progress.add(size(part))


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Tells that the job does `what` within the block: "writing the checkpoint of epoch 3: 7 s"."""
    started = time.monotonic()
    log.info("%s", what, extra={"stage": what, "finished": False})
    try:
        yield
    finally:
        seconds = time.monotonic() - started
        log.info("%s: %s", what, duration(seconds), extra={"stage": what, "finished": True, "step_seconds": seconds})


def duration(seconds: float) -> str:
    """`seconds` in words: "48 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


TAGS = ("program", "JobId", "stage")
_program: str | None = None


@contextlib.contextmanager
def counting_for(program: str) -> Iterator[None]:
    """Gives this process's metrics the tag `program` within the block. Workers need this: they run no file of jobs/."""
    global _program  # noqa: PLW0603  (the metrics, too, belong to the whole process)
    before, _program = _program, program
    try:
        yield
    finally:
        _program = before


@functools.cache
def _instruments() -> tuple[Any, Any, Any]:
    from ray.util.metrics import Counter, Gauge  # noqa: PLC0415  (some jobs don't use Ray)

    return (
        Counter("dim_done", "Units of work done, photos mostly", TAGS),
        Counter("dim_errors", "Units of work that ended in an error", TAGS),
        Gauge("dim_waiting", "Units of work that are left", TAGS),
    )


def _export(stage: Stage, done: int, errors: int, waiting: int) -> None:
    """Adds `done` more units, `errors` of which failed, to the metrics of `stage`. Does nothing without Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    all_done, failed, left = _instruments()
    tags = {"program": _program or logs.job(), "JobId": ray.get_runtime_context().get_job_id(), "stage": stage}
    if done:
        all_done.inc(done, tags)
    if errors:
        failed.inc(errors, tags)
    left.set(waiting, tags)
