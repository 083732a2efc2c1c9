"""What the network's actors take of the cluster."""

from dataclasses import dataclass

from dim import cluster

# Images a forward pass. A CPU gains nothing by more than keep it busy; a GPU that hasn't the memory is given less
# (`forward.Forward`).
CPU_BATCH, CPU_PIXELS, GPU_BATCH = 32, 8 * 224**2, 256


@dataclass(frozen=True)
class Resources:
    """What the network's actors take: how many, and of what each; `batch_size` images a forward pass."""

    workers: int
    cpus: float
    gpus: float
    batch_size: int

    @property
    def threads(self) -> int:
        """Threads of an actor: one a CPU, and one for the CPU left for decoding, which is mostly idle without GPUs."""
        return int(self.cpus) + 1

    @property
    def streams(self) -> int:
        """Forward passes that an actor runs at once: one on a GPU, else one a thread."""
        return 1 if self.gpus > 0 else self.threads

    @property
    def images_at_once(self) -> int:
        """Images that keep all streams busy, and not one waiting for another; as many are decoded by one task."""
        return self.batch_size * (self.streams if self.gpus > 0 else 2 * self.streams)


def resources(workers: int | None, gpus_per_worker: float | None, batch_size: int | None, image_size: int) -> Resources:
    """The resources asked for, for images of `image_size` pixels a side.

    What is not given follows the cluster, also as it will be once the autoscaler has started what it may: an actor a
    GPU; without GPUs, one for each node, and more on nodes of several times the CPUs.
    """
    gpus = cluster.gpus(gpus_per_worker)
    if gpus > 0:
        # A CPU feeds the GPU, the others decode.
        count = workers or max(1, int(cluster.all_gpus() / gpus))
        return Resources(count, _feeding(gpus), gpus, batch_size or GPU_BATCH)
    sizes = [node["CPU"] for node in cluster.nodes() if node.get("CPU", 0) > 0] or [1.0]
    # On a node that is a multiple of the smallest, as many actors: all CPUs have work.
    count = workers or sum(int(size // min(sizes)) for size in sizes)
    share = min(*sizes, sum(sizes) / count)
    return Resources(
        count, beside_decoding(share, 0), gpus, batch_size or max(1, min(CPU_BATCH, CPU_PIXELS // image_size**2))
    )


def beside_decoding(share: float, gpus: float) -> float:
    """The CPUs that a network with `gpus` takes of its `share`: nothing would be decoded if it took all.

    One feeds a GPU; without, all work but one.
    """
    if share < 2:
        return share / 4
    return 1.0 if gpus > 0 else int(share) - 1.0


def _feeding(gpus: float) -> float:
    """The CPUs of an actor with this many `gpus`: one, or less where its share of a node is less than two."""
    shares = [node["CPU"] * gpus / node["GPU"] for node in cluster.nodes() if node.get("GPU")]
    return beside_decoding(min(shares, default=2), gpus)
