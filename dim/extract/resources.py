"""How many network actors run, and on what: CPUs, GPUs, batch size, precision.

`resources` sizes the actors of an extraction for the cluster and the work. `resolve_precision` chooses the precision
that all its nodes can compute in.
"""

import dataclasses
from dataclasses import dataclass

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dim.app import cluster, placement
from dim.model import devices as precisions

# Images a forward pass. A CPU is busy with these and gains nothing from more. `embedder.Forward` gives fewer to a GPU
# with too little memory.
CPU_BATCH, CPU_PIXELS, GPU_BATCH = 32, 8 * 224**2, 256
# The loads, of `images_at_once` each, that an actor embeds in about the time of its start. A CPU actor starts in ten
# seconds and embeds 7 photos of 224 pixels a second. A GPU is assumed to embed 800 a second; its node needs minutes.
CPU_LOADS, GPU_LOADS = 4, 64
USED = 0.9  # actors have to use this share of all CPUs; using more counts less than the actors' size


@dataclass(frozen=True)
class Resources:
    """The network actors: how many `workers`, the `cpus` and `gpus` of each, and `batch_size` images a forward pass."""

    workers: int
    cpus: float
    gpus: float
    batch_size: int

    @property
    def threads(self) -> int:
        """Threads of an actor."""
        return placement.threads(self.cpus)

    @property
    def streams(self) -> int:
        """Forward passes that an actor runs at once: one on a GPU, else one a thread."""
        return 1 if self.gpus > 0 else self.threads

    @property
    def images_at_once(self) -> int:
        """Images that keep all streams busy, so that none waits for another; also the photos of a decoding task."""
        return self.batch_size * (self.streams if self.gpus > 0 else 2 * self.streams)


def resources(
    workers: int | None, gpus_per_worker: float | None, batch_size: int | None, image_size: int, images: int
) -> Resources:
    """Sizes the network actors for the cluster, including the nodes that its autoscaler may still start.

    `workers` None gives one actor a GPU. Without GPUs it gives one a node, or several on nodes with several times the
    CPUs. It leaves out actors that would work for less time than they take to start. Of a given number it leaves out
    only those without any work. The work is `images` photos with sides of `image_size` pixels.
    Raises UserError if no node has, or will have, room for such an actor.
    """
    gpus = placement.gpus_per_worker(gpus_per_worker)
    count = workers or _most(gpus)
    cpus = placement.worker_cpus(placement.cpu_share(count, gpus), gpus)
    batch = GPU_BATCH if gpus > 0 else max(1, min(CPU_BATCH, CPU_PIXELS // image_size**2))
    machine = Resources(count, cpus, gpus, batch_size or batch)
    loads = 1 if workers else GPU_LOADS if gpus > 0 else CPU_LOADS
    busy = -(-images // (loads * machine.images_at_once))
    machine = dataclasses.replace(machine, workers=max(1, min(count, busy)))
    placement.require_room("network actor", machine.workers, cpus, gpus)
    return machine


def _most(gpus: float) -> int:
    """The number of actors that fit on the cluster, now or once it has grown."""
    nodes = placement.known_nodes()
    if gpus > 0:
        return max(1, placement.capacity(nodes, 0, gpus))
    total = sum(node.cpus * count for node, count in nodes.items())

    def used(size: float) -> float:
        return min(USED * total, size * placement.capacity(nodes, size, 0))

    # All actors have one size: the largest that leaves hardly any CPU idle. A node with several times the CPUs of the
    # others then gets several actors, and a small head node does not split large nodes into hundreds.
    sizes = sorted({node.cpus for node in nodes}, reverse=True)
    return max(1, placement.capacity(nodes, max(sizes, key=used, default=1.0), 0))


def resolve_precision(wanted: str, gpus_per_worker: float | None) -> str:
    """`wanted`, or for "auto" the fastest precision of all nodes that can run a worker. Only "auto" needs Ray.

    Precision is part of the embedding identity, so it must not depend on the node that is asked or on the nodes that
    are up. If more such nodes may start, it is float32 for CPUs, and bfloat16 for GPUs, though GPUs from before 2020
    compute that more slowly.
    """
    if wanted != "auto":
        return wanted
    gpus = placement.gpus_per_worker(gpus_per_worker)
    if cluster.is_local():
        return precisions.best_precision(gpus > 0)
    able = [node for node in ray.nodes() if node["Alive"] and _runs(node["Resources"], gpus)]
    if not able or any(_runs(kind, gpus) for kind, _ in cluster.autoscaled_nodes()):
        return "bfloat16" if gpus > 0 else "float32"
    ask = ray.remote(num_cpus=0)(precisions.best_precision)
    there = (NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in able)
    answers = {*ray.get([ask.options(scheduling_strategy=where).remote(gpus > 0) for where in there])}
    return "bfloat16" if answers == {"bfloat16"} else "float32"


def _runs(node: dict[str, float], gpus: float) -> bool:
    return node.get("GPU", 0) >= gpus if gpus > 0 else node.get("CPU", 0) > 0
