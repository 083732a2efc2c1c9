"""What jobs count, as metrics of Ray's: every node exports them to Prometheus, beside Ray's of GPUs, CPUs and memory.

`ray_dim_done_total` and `ray_dim_errors_total` count units of work, photos mostly, and `ray_dim_waiting` says how many
are left. Each has the tags `program`, such as "train" (Prometheus has its own tag `job`), `JobId`, by which Ray's
metrics and dashboard name the job, and `stage`, beside Ray's tags of node and process.
"""

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any, Literal

from dim import logs

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
