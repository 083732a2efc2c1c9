"""How many workers fit on the cluster, and how many CPUs and GPUs each worker gets.

The known nodes are the live nodes and the nodes that the autoscaler may still start.
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
        # The tolerance is for shares such as 7/3 CPUs: three workers with this share must fit on 7 CPUs.
        return min(math.floor(has / takes + 1e-6) for has, takes in wanted if takes > 0)

    def __str__(self) -> str:
        return _in_words(self.cpus, self.gpus)


def _in_words(cpus: float, gpus: float) -> str:
    parts = [f"{gpus:g} GPU{'' if gpus == 1 else 's'}"] if gpus else []
    return " and ".join([*parts, f"{cpus:g} CPU{'' if cpus == 1 else 's'}"])


def live_nodes() -> Counter[Node]:
    """How many live nodes there are of each size. Nodes without CPUs do no work and are left out."""
    found = (Node(node.get("CPU", 0), node.get("GPU", 0)) for node in cluster.nodes())
    return Counter(node for node in found if node.cpus > 0)


def known_nodes() -> Counter[Node]:
    """How many nodes of each size are live or may start: the larger of the two numbers."""
    possible = Counter({Node(kind["CPU"], kind["GPU"]): count for kind, count in cluster.autoscaled_nodes()})
    return live_nodes() | possible


def capacity(nodes: Counter[Node], cpus: float, gpus: float) -> int:
    """The number of workers with `cpus` and `gpus` each that fit on `nodes`."""
    return sum(count * node.slots(cpus, gpus) for node, count in nodes.items())


def gpus_per_worker(wanted: float | None) -> float:
    """The GPUs of each worker: `wanted`. By default, a worker gets one GPU if any known node has GPUs, else none."""
    return float(any(node.gpus > 0 for node in known_nodes())) if wanted is None else wanted


def cpu_share(workers: int, gpus: float) -> float:
    """The most CPUs per worker with which `workers`, each with `gpus`, still fit on the known nodes.

    The share is for the worker and for the tasks that decode its photos. If the GPUs suffice only for some workers,
    only these workers count. If no known node has enough GPUs, or no node is known, the share is one CPU.
    """
    nodes = known_nodes()
    if gpus > 0:
        nodes = Counter({node: count for node, count in nodes.items() if node.gpus >= gpus})
        workers = min(workers, capacity(nodes, 0, gpus))
    shares = {node.cpus / number for node in nodes for number in range(1, workers + 1)}
    return max((cpus for cpus in shares if capacity(nodes, cpus, gpus) >= workers), default=1.0)


def worker_cpus(share: float, gpus: float) -> float:
    """The CPUs of its `share` that a worker reserves for itself. The tasks that decode its photos use the other CPUs.

    A worker with GPUs needs one CPU to feed them, and leaves the other CPUs to the tasks. Without a GPU, the network
    takes all CPUs but one. If the share is below two CPUs, the worker reserves a quarter of it.
    """
    if share < 2:
        return max(1, math.floor(share / 4 * 1e4)) / 1e4  # Ray counts in ten-thousandths
    return 1.0 if gpus > 0 else int(share) - 1.0


def threads(cpus: float) -> int:
    """The threads of a worker that reserves `cpus`: one thread more, as the decoding tasks leave a CPU partly idle."""
    return int(cpus) + 1


def task_count(units: int, worth: int) -> int:
    """The number of tasks for `units` of work: one task per live CPU, but at most one per unit.

    If the cluster may grow, there may be one task per known CPU, but each task then has at least `worth` units.
    """
    both = live_nodes(), known_nodes()
    live, known = (int(sum(node.cpus * count for node, count in nodes.items())) for nodes in both)
    return max(1, min(units, max(live, min(known, units // worth))))


def require_room(what: str, workers: int, cpus: float, gpus: float) -> None:
    """Logs how many of `workers`, with `cpus` and `gpus` each, must wait for nodes. `what` is the word for a worker.

    Raises UserError if nodes are known, but no node has the CPUs and GPUs for one worker.
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
