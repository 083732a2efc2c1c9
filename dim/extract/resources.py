"""What the network's actors take of the cluster."""

import dataclasses
from dataclasses import dataclass

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dim.app import cluster, placement
from dim.model import devices as precisions

# Images a forward pass. A CPU gains nothing by more than keep it busy; a GPU that hasn't the memory is given less
# (`forward.Forward`).
CPU_BATCH, CPU_PIXELS, GPU_BATCH = 32, 8 * 224**2, 256
# How many times `images_at_once` an actor gets through in about the time that it takes to start: ten seconds of a CPU,
# which embeds 7 photos of 224 pixels a second; a GPU is taken to embed 800, and its node takes minutes to start.
CPU_LOADS, GPU_LOADS = 4, 64
USED = 0.9  # part of all CPUs for which larger actors are not given up


@dataclass(frozen=True)
class Resources:
    """What the network's actors take: how many, and of what each; `batch_size` images a forward pass."""

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
        """Images that keep all streams busy, so that none waits for another; a decoding task takes as many."""
        return self.batch_size * (self.streams if self.gpus > 0 else 2 * self.streams)


def resources(
    workers: int | None, gpus_per_worker: float | None, batch_size: int | None, image_size: int, images: int
) -> Resources:
    """The resources asked for, for so many `images` of `image_size` pixels a side.

    What is not given follows the cluster, also as it will be once the autoscaler has started what it may: an actor a
    GPU; without GPUs, one for each node, and more on nodes of several times the CPUs. It follows the work, too: there
    are no more actors than have photos for about as long as they take to start, or, of as many as `workers` asks for,
    than have photos at all. Raises UserError where no node has, or will have, room for such an actor.
    """
    gpus = placement.gpus(gpus_per_worker)
    count = workers or _most(gpus)
    cpus = placement.taken(placement.share(count, gpus), gpus)
    batch = GPU_BATCH if gpus > 0 else max(1, min(CPU_BATCH, CPU_PIXELS // image_size**2))
    machine = Resources(count, cpus, gpus, batch_size or batch)
    loads = 1 if workers else GPU_LOADS if gpus > 0 else CPU_LOADS
    busy = -(-images // (loads * machine.images_at_once))
    machine = dataclasses.replace(machine, workers=max(1, min(count, busy)))
    placement.require_room("network actor", machine.workers, cpus, gpus)
    return machine


def _most(gpus: float) -> int:
    """The actors for which there is room, or will be."""
    nodes = placement.known()
    if gpus > 0:
        return max(1, placement.room(nodes, 0, gpus))
    total = sum(node.cpus * count for node, count in nodes.items())

    def used(size: float) -> float:
        return min(USED * total, size * placement.room(nodes, size, 0))

    # All actors are of one size: the largest with which nearly all CPUs have work. So a node that is a multiple of the
    # others has as many, and a small head does not split large nodes into hundreds.
    sizes = sorted({node.cpus for node in nodes}, reverse=True)
    return max(1, placement.room(nodes, max(sizes, key=used, default=1.0), 0))


def resolve_precision(wanted: str, gpus: float) -> str:
    """`wanted`, or for "auto" the fastest that all nodes support on which workers with this many `gpus` can run.

    It is part of a descriptor's identity, so it must not depend on which node is asked, or lives. Where more such nodes
    may come, it is bfloat16 for GPUs, which those of before 2020 compute more slowly, and float32 for CPUs.
    """
    if wanted != "auto":
        return wanted
    if cluster.is_own():
        return precisions.best_precision(gpus > 0)
    able = [node for node in ray.nodes() if node["Alive"] and _runs(node["Resources"], gpus)]
    if not able or any(_runs(kind, gpus) for kind, _ in cluster.may_come()):
        return "bfloat16" if gpus > 0 else "float32"
    ask = ray.remote(num_cpus=0)(precisions.best_precision)
    there = (NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in able)
    answers = {*ray.get([ask.options(scheduling_strategy=where).remote(gpus > 0) for where in there])}
    return "bfloat16" if answers == {"bfloat16"} else "float32"


def _runs(node: dict[str, float], gpus: float) -> bool:
    return node.get("GPU", 0) >= gpus if gpus > 0 else node.get("CPU", 0) > 0
