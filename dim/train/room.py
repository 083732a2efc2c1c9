"""Room for a training's workers on a cluster that starts nodes as they are asked for."""

import logging
import time

from ray.util.placement_group import placement_group, remove_placement_group

from dim import cluster

log = logging.getLogger(__name__)

PATIENCE = 600.0  # seconds in which a cloud has started its nodes, or won't


def wait(workers: int, each: dict[str, float]) -> None:
    """Waits until there is room for all `workers`, with the resources `each`; in vain, then until there is for one.

    On a cluster that grows, all of them get PATIENCE seconds. Ray Train would start with the first worker that finds
    room, and from the last checkpoint again as nodes come; an epoch that is lost costs more than to wait.
    """
    if _found(workers, each, 1):
        return
    if cluster.may_come():
        log.info("all of them have %.0f s to find room; then those that have found it begin", PATIENCE)
        if _found(workers, each, PATIENCE):
            return
    if not _found(1, each, 1):
        log.info("waiting for room for one training worker")
        _found(1, each, float("inf"))


def _found(workers: int, each: dict[str, float], seconds: float) -> bool:
    """Whether there is room within `seconds`; a placement group, unlike Ray Train's wait, is one that Ctrl-C ends."""
    group = placement_group([each] * workers)
    try:
        end = time.monotonic() + seconds
        while not (found := bool(group.wait(1))) and time.monotonic() < end:
            pass
        return found
    finally:
        remove_placement_group(group)
