"""Where work finds room: what workers take of the nodes that live and of those that the autoscaler may start."""

import logging
import math
from collections import Counter
from typing import NamedTuple

from dim.app import cluster
from dim.errors import UserError

log = logging.getLogger(__name__)


class Node(NamedTuple):
    """What a node has for workers."""

    cpus: float
    gpus: float

    def slots(self, cpus: float, gpus: float) -> int:
        """How many workers with so many of each find room on it."""
        wanted = [(self.cpus, cpus), (self.gpus, gpus)]
        # Shares such as a third of 7 aren't exact.
        return min(math.floor(has / takes + 1e-6) for has, takes in wanted if takes > 0)

    def __str__(self) -> str:
        return counted(self.cpus, self.gpus)


def counted(cpus: float, gpus: float) -> str:
    """So many CPUs and GPUs, in words."""
    parts = [f"{gpus:g} GPU{'' if gpus == 1 else 's'}"] if gpus else []
    return " and ".join([*parts, f"{cpus:g} CPU{'' if cpus == 1 else 's'}"])


def live() -> Counter[Node]:
    """The live nodes, but for those without CPUs, which do no work."""
    found = (Node(node.get("CPU", 0), node.get("GPU", 0)) for node in cluster.nodes())
    return Counter(node for node in found if node.cpus > 0)


def known() -> Counter[Node]:
    """The nodes that live or may come. A live node counts as one of those of its size that may come."""
    coming = Counter({Node(kind["CPU"], kind["GPU"]): count for kind, count in cluster.may_come()})
    return live() | coming


def gpus(wanted: float | None) -> float:
    """GPUs that a worker gets: as many as are `wanted`; if nothing is asked for, one, where any node has, or will."""
    return float(any(node.gpus > 0 for node in known())) if wanted is None else wanted


def room(nodes: Counter[Node], cpus: float, gpus: float) -> int:
    """How many workers with so many CPUs and GPUs find room on `nodes`."""
    return sum(count * node.slots(cpus, gpus) for node, count in nodes.items())


def share(workers: int, gpus: float) -> float:
    """The largest share of a node's CPUs that each of `workers`, with this many `gpus`, can have so that all find room.

    Where there are too few GPUs for all, only the workers that find room count. Where no node is known, a share is one
    CPU.
    """
    nodes = known()
    if gpus > 0:
        nodes = Counter({node: count for node, count in nodes.items() if node.gpus >= gpus})
        workers = min(workers, room(nodes, 0, gpus))
    shares = {node.cpus / number for node in nodes for number in range(1, workers + 1)}
    return max((cpus for cpus in shares if room(nodes, cpus, gpus) >= workers), default=1.0)


def taken(share: float, gpus: float) -> float:
    """The CPUs that a worker with this many `gpus`, an actor or a trainer, takes of its share of a node.

    The others decode photos for it: a GPU needs many of them and one that feeds it, without one the network needs all
    but one. Of a share below two CPUs it takes a quarter.
    """
    if share < 2:
        return max(1, math.floor(share / 4 * 1e4)) / 1e4  # Ray counts in ten-thousandths
    return 1.0 if gpus > 0 else int(share) - 1.0


def threads(cpus: float) -> int:
    """Threads of a worker that has taken so many CPUs: one for each, and one for the CPU that is left for decoding,
    which is idle for part of the time.
    """
    return int(cpus) + 1


def tasks(units: int, worth: int) -> int:
    """How many tasks `units` of work are split into, at least a unit each: one for each CPU of the live nodes, or more
    where CPUs may come, as long as each task has the `worth` units for which a CPU is worth starting.
    """
    here, coming = (int(sum(node.cpus * count for node, count in nodes.items())) for nodes in (live(), known()))
    return max(1, min(units, max(here, min(coming, units // worth))))


def require_room(what: str, workers: int, cpus: float, gpus: float) -> None:
    """Says so where `workers`, each a `what` of so many CPUs and GPUs, have to wait for nodes.

    Raises UserError where no node has, or will have, the GPUs for one. Where no node is known, none can be ruled out.
    """
    alive, nodes = live(), known()
    if nodes and not room(nodes, cpus, gpus):
        sizes = ", ".join(sorted(map(str, nodes)))
        raise UserError(
            f"--gpus-per-worker {gpus:g}: no node of this cluster has so many GPUs, or may come with them ({sizes}); "
            "ask for fewer, or let the head say what nodes may come, as in cluster/config.yaml"
        )
    ready = min(workers, room(alive, cpus, gpus))
    if ready == workers:
        return
    has = ", ".join(f"{count} × {node}" for node, count in sorted(alive.items())) or "no node that works"
    most = f", and may grow to {', '.join(f'{count} × {node}' for node, count in sorted(nodes.items()))}"
    log.info(
        "waiting for %d of %d %ss of %s: the cluster has %s%s",
        workers - ready, workers, what, counted(cpus, gpus), has, most if nodes != alive else "",
    )  # fmt: skip
