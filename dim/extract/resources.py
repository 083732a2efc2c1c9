"""How many network actors run, and on what: CPUs, GPUs, batch size, precision.

`resources` sizes the actors of an extraction for the cluster and the work. `resolve_precision` chooses the precision
in which all nodes compute.
"""

import dataclasses
import os
from dataclasses import dataclass

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dim.app import cluster, worker_placement
from dim.errors import JobFailed
from dim.extract.embedder import default_batch_size
from dim.model import devices as precisions

# An actor is started only if it has this many loads of work. A load is `images_at_once` photos. A CPU actor starts in
# about ten seconds, the time in which it embeds its loads (7 photos of 224 pixels per second and CPU). A GPU actor is
# assumed to embed 800 photos per second. Its start takes minutes if its node has to start first.
CPU_LOADS, GPU_LOADS = 4, 64
USED = 0.9  # the share of the cluster's CPUs that the chosen size of actors should use (see `_most`)


NETWORK_TRIES = 5  # the most starts of an actor, and the most attempts to embed the same photos


def require_a_try_left() -> None:
    """Raises JobFailed if the actor that calls it has died `NETWORK_TRIES` times over the same photos."""
    if ray.is_initialized() and cluster.earlier_attempts() >= NETWORK_TRIES:
        raise JobFailed(
            f"the network's process died {NETWORK_TRIES} times over the same photos, as it does if memory is "
            "short; run the same command with a smaller --batch-size"
        )


@dataclass(frozen=True)
class Resources:
    """The network actors: their number `workers`, the `cpus` and `gpus` of each, and `batch_size` images per pass."""

    workers: int
    cpus: float
    gpus: float
    batch_size: int

    @property
    def threads(self) -> int:
        """The number of threads of an actor."""
        return worker_placement.threads(self.cpus)

    @property
    def streams(self) -> int:
        """The number of forward passes that an actor runs at once: one on a GPU, one per thread on CPUs."""
        return 1 if self.gpus > 0 else self.threads

    @property
    def images_at_once(self) -> int:
        """The number of images that keep all streams busy. A decoding task decodes the same number of photos."""
        return self.batch_size * (self.streams if self.gpus > 0 else 2 * self.streams)


def resources(
    workers: int | None, gpus_per_worker: float | None, batch_size: int | None, image_size: int, images: int
) -> Resources:
    """Sizes the network actors for the cluster, including the nodes that its autoscaler may still start.

    If `workers` is None, each GPU gets one actor, or several if `gpus_per_worker` is a share of a GPU. Without GPUs,
    each node usually gets one actor, or several if it has several times the CPUs of others. Actors that would take
    longer to start than to work are left out. If `workers` is given, only actors without any work are left out. The
    work is `images` photos with sides of `image_size` pixels. Raises UserError if no node that is live or may start has
    room for an actor.
    """
    gpus = worker_placement.gpus_per_worker(gpus_per_worker)
    count = workers or _most(gpus)
    cpus = worker_placement.worker_cpus(worker_placement.cpu_share(count, gpus), gpus)
    machine = Resources(count, cpus, gpus, batch_size or default_batch_size(image_size, gpu=gpus > 0))
    loads = 1 if workers else GPU_LOADS if gpus > 0 else CPU_LOADS
    busy = -(-images // (loads * machine.images_at_once))
    machine = dataclasses.replace(machine, workers=max(1, min(count, busy)))
    worker_placement.require_room("network actor", machine.workers, cpus, gpus)
    return machine


def of_own_process(batch_size: int | None, image_size: int) -> Resources:
    """What the job's process takes if it embeds photos itself: what the actor of a local Ray would take of the CPUs."""
    cpus = worker_placement.worker_cpus(float(os.cpu_count() or 1), 0.0)
    return Resources(1, cpus, 0.0, batch_size or default_batch_size(image_size, gpu=False))


def _most(gpus: float) -> int:
    """The largest number of actors: those that fit on all nodes that are live or may start."""
    nodes = worker_placement.known_nodes()
    if gpus > 0:
        return max(1, worker_placement.capacity(nodes, 0, gpus))
    total = sum(node.cpus * count for node, count in nodes.items())

    def used(size: float) -> float:
        return min(USED * total, size * worker_placement.capacity(nodes, size, 0))

    # All actors have the size of one of the nodes; a larger node gets several of them. Some sizes fill at least the
    # share USED of all CPUs: the largest of these is chosen. If no size does, the size that fills most CPUs is chosen.
    # (Actors of the size of a small head node would fill all CPUs, but each large node would get hundreds of them.)
    sizes = sorted({node.cpus for node in nodes}, reverse=True)
    return max(1, worker_placement.capacity(nodes, max(sizes, key=used, default=1.0), 0))


def resolve_precision(wanted: str, gpus_per_worker: float | None) -> str:
    """Returns `wanted` or, if that is "auto", the fastest precision that suits all nodes that can run a worker.

    Without a connection to Ray, this machine's CPUs decide. If the cluster may still start nodes that can run a worker,
    "auto" doesn't ask the nodes: it is float32 for CPUs and bfloat16 for GPUs, although GPUs from before 2020 compute
    bfloat16 more slowly. Otherwise the precision, which is part of the embedding identity, would depend on the nodes
    that happen to be live.
    """
    if wanted != "auto":
        return wanted
    if not ray.is_initialized():
        return precisions.best_precision(gpu=False)
    gpus = worker_placement.gpus_per_worker(gpus_per_worker)
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
