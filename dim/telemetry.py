"""What jobs count, as metrics of Ray's: every node exports them to Prometheus, beside Ray's of GPUs, CPUs and memory.

`ray_dim_done_total` and `ray_dim_errors_total` count units of work, photos mostly, and `ray_dim_waiting` says how many
are left; each has the tag `stage`, and Ray's tags of job and node.
"""

import functools
import sys
from typing import Any


@functools.cache
def _instruments() -> tuple[Any, Any, Any]:
    from ray.util.metrics import Counter, Gauge  # noqa: PLC0415  (not every job has a Ray)

    return (
        Counter("dim_done", "Units of work done, photos mostly", ("stage",)),
        Counter("dim_errors", "Units of work that ended in an error", ("stage",)),
        Gauge("dim_waiting", "Units of work that are left", ("stage",)),
    )


def tell(stage: str, done: int, errors: int, waiting: int) -> None:
    """Counts `done` more units of `stage`, `errors` of them failed; `waiting` are left. Without a Ray, nothing."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    counted, failed, left = _instruments()
    tags = {"stage": stage}
    if done:
        counted.inc(done, tags)
    if errors:
        failed.inc(errors, tags)
    left.set(waiting, tags)
