"""Batches of triplets that share images. Each distinct image of a batch goes through the network only once.

All triplets of an anchor follow each other, because they share the anchor and mostly its positives. Anchors that share
negatives follow each other, too: a negative that is hard for one photo is hard for similar photos. A batch still mixes
objects, because triplets of only one or two objects would pull the photos of each object together and ignore all
other photos. The loss and its gradient are the same as if the network saw all three images of every triplet.

A batch is divided among the replicas, the copies of the network on the devices. The sizes of the parts differ by one
at most. The triplets of an anchor go to the machine that has cached the anchor's features, if there is room.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

OBJECT_SHARE = 1 / 4  # share of a batch that the anchors of one object may take while other anchors are left
SHARERS = 32  # anchors considered per image of a batch, because an image may be in the triplets of very many anchors


@dataclass(frozen=True)
class ReplicaBatch:
    """The part of a batch that one replica gets."""

    rows: np.ndarray  # the rows of the distinct photos, (U,)
    indices: np.ndarray  # the triplets as positions in `rows`: anchors, positives and negatives, (3, B)


def epoch(
    triplets: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    *,
    machines: np.ndarray,
    owners: np.ndarray,
    generator: np.random.Generator,
) -> Iterator[list[ReplicaBatch]]:
    """The batches of an epoch, in random order. They do not depend on the number of replicas.

    All batches are full; a random remainder of the triplets is left out. If there are fewer than `batch_size` triplets,
    they make one smaller batch. If there are even fewer triplets than replicas, there is no batch, because each replica
    needs a triplet.

    Args:
        triplets: The rows of the anchor, the positive and the negative of each triplet, (T, 3).
        labels: The label of each row.
        batch_size: The number of triplets per batch, over all replicas.
        machines: The number of each replica's machine, (R,).
        owners: The number of the machine that owns each row.

    Yields:
        The per-replica batches of one batch, in the order of the replicas.
    """
    size = min(batch_size, len(triplets))
    count = len(triplets) // size if size >= len(machines) else 0
    chosen = triplets[generator.permutation(len(triplets))[: count * size]]
    ordered = chosen[_Anchors(chosen, labels, size, generator).order()]
    for start in generator.permutation(count) * size:
        batch = ordered[start : start + size]
        replicas = _divided(owners[batch[:, 0]], machines)
        yield [_replica_batch(batch[replicas == replica]) for replica in range(len(machines))]


def distinct(batch: list[ReplicaBatch], *, machines: np.ndarray, owners: np.ndarray) -> list[np.ndarray]:
    """The rows of the distinct photos of `batch`, divided among the replicas, so that each photo is on one replica.

    Args:
        batch: The per-replica batches, as `epoch` yields them.
        machines: The number of each replica's machine, (R,).
        owners: The number of the machine that owns each row.

    Returns:
        The rows of each replica, ascending. If there are fewer photos than replicas, some replicas get none.
    """
    rows = np.unique(np.concatenate([part.rows for part in batch]))
    replicas = _divided(owners[rows], machines)
    return [rows[replicas == replica] for replica in range(len(machines))]


def _divided(owners: np.ndarray, machines: np.ndarray) -> np.ndarray:
    """The replica of each item, a triplet or a photo, (B,). If there is room, it is on the machine that owns the item.

    The replicas' numbers of items differ by one at most. Neighbouring items mostly get the same replica.
    """
    room = [len(part) for part in np.array_split(owners, len(machines))]
    found = np.full(len(owners), -1)
    for replica, machine in enumerate(machines):
        own = np.flatnonzero((found < 0) & (owners == machine))[: room[replica]]
        found[own] = replica
        room[replica] -= len(own)
    found[found < 0] = np.repeat(np.arange(len(machines)), room)
    return found


class _Anchors:
    """Orders `triplets` anchor by anchor, so that the triplets of a batch of `size` share many images."""

    def __init__(self, triplets: np.ndarray, labels: np.ndarray, size: int, generator: np.random.Generator) -> None:
        self._size, self._labels = size, labels
        self._places: dict[int, list[int]] = defaultdict(list)
        for place in generator.permutation(len(triplets)).tolist():
            self._places[int(triplets[place, 0])].append(place)
        self._images = {anchor: set(triplets[places].ravel().tolist()) for anchor, places in self._places.items()}
        # The values of these dictionaries are all None: they serve as sets that keep the random order.
        self._left = dict.fromkeys(self._places)
        self._sharers: dict[int, dict[int, None]] = defaultdict(dict)
        for anchor, images in self._images.items():
            for image in images:
                self._sharers[image][anchor] = None

    def order(self) -> list[int]:
        """The positions of the triplets in the new order. It begins with all triplets of a random anchor.

        Next come the triplets of the anchor that has the largest share of its images in the batch, and so on.
        """
        order: list[int] = []
        self._begin()
        while self._left:
            anchor = self._next()
            self._remove(anchor)
            order += self._places[anchor]
            over = len(order) % self._size
            if over < len(self._places[anchor]):  # the anchor filled the batch; its last triplets begin the next batch
                self._begin()
            if over:
                self._take(anchor, min(over, len(self._places[anchor])))
        return order

    def _begin(self) -> None:
        self._held: set[int] = set()
        self._shared: Counter[int] = Counter()  # anchor that is left → number of its images in the batch
        self._of_object: Counter[str] = Counter()

    def _remove(self, anchor: int) -> None:
        del self._left[anchor], self._shared[anchor]
        for image in self._images[anchor]:
            del self._sharers[image][anchor]

    def _take(self, anchor: int, triplets: int) -> None:
        self._of_object[self._labels[anchor]] += triplets
        for image in self._images[anchor] - self._held:
            self._held.add(image)
            self._shared.update(islice(self._sharers[image], SHARERS))

    def _next(self) -> int:
        sharing = filter(self._fits, self._shared)
        best = max(sharing, key=lambda anchor: self._shared[anchor] / len(self._images[anchor]), default=None)
        if best is not None:
            return best
        return next(filter(self._fits, self._left), next(iter(self._left)))

    def _fits(self, anchor: int) -> bool:
        present = self._of_object[self._labels[anchor]]
        return not present or present + len(self._places[anchor]) <= OBJECT_SHARE * self._size


def _replica_batch(triplets: np.ndarray) -> ReplicaBatch:
    rows, indices = np.unique(triplets.T, return_inverse=True)
    return ReplicaBatch(rows, indices.reshape(3, -1))
