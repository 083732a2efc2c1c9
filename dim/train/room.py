"""Room for a training's workers on a cluster that starts nodes as they are asked for."""

import logging
import math
import time

from ray.util.placement_group import placement_group, remove_placement_group

from dim import cluster, placement

log = logging.getLogger(__name__)

PATIENCE = 600.0  # seconds in which a cloud has started its nodes, or won't
AGAIN = 60.0  # seconds after which nodes may have come or gone


def divisible(cpus: float) -> float:
    """The CPUs to ask for where a worker is to take `cpus`: of less than one the next lower power of two.

    Ray Train divides floats to know how many workers a node holds: of five that take a tenth it starts four.
    """
    return cpus if cpus >= 1 else 2.0 ** math.floor(math.log2(cpus))


def wait(workers: int, each: dict[str, float]) -> None:
    """Waits until there is room for all `workers`, with the resources `each`; in vain, for as many as the nodes hold.

    On a cluster that grows, all of them get PATIENCE seconds. Ray Train would start with the first worker that finds
    room, and from the last checkpoint again as nodes come; an epoch that is lost costs more than to wait.
    """
    if _found(workers, each, 1):
        return
    if cluster.may_come():
        log.info("all of them have %.0f s to find room; then as many begin as the nodes hold", PATIENCE)
        if _found(workers, each, PATIENCE):
            return
    seconds, said = 1.0, 0
    while not _found(number := _tried(workers, each), each, seconds):
        if number != said:
            log.info("%s", waiting(number))
        seconds, said = AGAIN, number


def waiting(workers: int) -> str:
    """What is said while there is no room for so many."""
    fewer = "s; fewer --workers need less" if workers > 1 else ""
    return f"waiting for room for {workers} training worker{fewer}"


def _tried(workers: int, each: dict[str, float]) -> int:
    """How many workers Ray Train tries to start: as many as the nodes would hold if no other job used them.

    Where one does, it tries again and again, without a word, and never with fewer.
    """
    return max(1, min(workers, placement.room(placement.live(), each["CPU"], each.get("GPU", 0.0))))


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
