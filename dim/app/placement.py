"""How many workers fit on the cluster, and how many CPUs and GPUs each one gets.

The known nodes are the live ones and those that the autoscaler may still start.
"""

import logging
import math
from collections import Counter
from typing import NamedTuple

from dim.app import cluster
from dim.errors import UserError

log = logging.getLogger(__name__)


class Node(NamedTuple):
    """The CPUs and GPUs of a node."""

    cpus: float
    gpus: float

    def slots(self, cpus: float, gpus: float) -> int:
        """The number of workers with `cpus` and `gpus` each that fit on the node."""
        wanted = [(self.cpus, cpus), (self.gpus, gpus)]
        # The tolerance is for shares such as 7/3 CPUs, of which three must fit on 7.
        return min(math.floor(has / takes + 1e-6) for has, takes in wanted if takes > 0)

    def __str__(self) -> str:
        return _in_words(self.cpus, self.gpus)


def _in_words(cpus: float, gpus: float) -> str:
    parts = [f"{gpus:g} GPU{'' if gpus == 1 else 's'}"] if gpus else []
    return " and ".join([*parts, f"{cpus:g} CPU{'' if cpus == 1 else 's'}"])


def live_nodes() -> Counter[Node]:
    """The live nodes, except those without CPUs, which do no work."""
    found = (Node(node.get("CPU", 0), node.get("GPU", 0)) for node in cluster.nodes())
    return Counter(node for node in found if node.cpus > 0)


def known_nodes() -> Counter[Node]:
    """The nodes that are live or may start. Of each size, the live or the possible ones count, whichever are more."""
    possible = Counter({Node(kind["CPU"], kind["GPU"]): count for kind, count in cluster.autoscaled_nodes()})
    return live_nodes() | possible


def capacity(nodes: Counter[Node], cpus: float, gpus: float) -> int:
    """The number of workers with `cpus` and `gpus` each that fit on `nodes`."""
    return sum(count * node.slots(cpus, gpus) for node, count in nodes.items())


def gpus_per_worker(wanted: float | None) -> float:
    """The GPUs of each worker: `wanted`, or by default one if any known node has a GPU, else none."""
    return float(any(node.gpus > 0 for node in known_nodes())) if wanted is None else wanted


def cpu_share(workers: int, gpus: float) -> float:
    """The most CPUs that each of `workers` can have so that all of them, with `gpus` each, fit on the known nodes.

    These CPUs are for the worker and for the tasks that decode its photos. If the GPUs don't suffice for all workers,
    only the workers that get GPUs count. If no node is known, the share is one CPU.
    """
    nodes = known_nodes()
    if gpus > 0:
        nodes = Counter({node: count for node, count in nodes.items() if node.gpus >= gpus})
        workers = min(workers, capacity(nodes, 0, gpus))
    shares = {node.cpus / number for node in nodes for number in range(1, workers + 1)}
    return max((cpus for cpus in shares if capacity(nodes, cpus, gpus) >= workers), default=1.0)


def worker_cpus(share: float, gpus: float) -> float:
    """The CPUs that a worker itself reserves of its `share`. The rest is for the tasks that decode its photos.

    A worker with GPUs needs one CPU to feed them, and leaves the others to decoding. Without a GPU, the network takes
    all CPUs but one. Of a share below two CPUs, the worker reserves a quarter.
    """
    if share < 2:
        return max(1, math.floor(share / 4 * 1e4)) / 1e4  # Ray counts in ten-thousandths
    return 1.0 if gpus > 0 else int(share) - 1.0


def threads(cpus: float) -> int:
    """The threads of a worker that reserves `cpus`: one more, since the decoding tasks leave a CPU partly idle."""
    return int(cpus) + 1


def task_count(units: int, worth: int) -> int:
    """The number of tasks for `units` of work: one for each live CPU, but at most one a unit.

    If the cluster may grow, there is one for each known CPU, as far as each task then gets at least `worth` units.
    """
    both = live_nodes(), known_nodes()
    live, known = (int(sum(node.cpus * count for node, count in nodes.items())) for nodes in both)
    return max(1, min(units, max(live, min(known, units // worth))))


def require_room(what: str, workers: int, cpus: float, gpus: float) -> None:
    """Logs how many of `workers`, each with `cpus` and `gpus`, have to wait for nodes. `what` is the word for a worker.

    Raises UserError if nodes are known, but none has the CPUs and GPUs for one worker.
    """
    alive, nodes = live_nodes(), known_nodes()
    if nodes and not capacity(nodes, cpus, gpus):
        sizes = ", ".join(sorted(map(str, nodes)))
        raise UserError(
            f"--gpus-per-worker {gpus:g}: no node that this cluster has or may start has so many GPUs ({sizes}); "
            "ask for fewer, or declare on the head node which nodes may start, as in cluster/config.yaml"
        )
    ready = min(workers, capacity(alive, cpus, gpus))
    if ready == workers:
        return
    has = ", ".join(f"{count} × {node}" for node, count in sorted(alive.items())) or "no node with CPUs"
    most = f", and may grow to {', '.join(f'{count} × {node}' for node, count in sorted(nodes.items()))}"
    log.info(
        "waiting for %d of %d %ss of %s: the cluster has %s%s",
        workers - ready, workers, what, _in_words(cpus, gpus), has, most if nodes != alive else "",
    )  # fmt: skip
