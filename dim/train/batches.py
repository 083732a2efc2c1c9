"""Batches of triplets in which images are shared, so that each distinct image goes through the network once.

An anchor's triplets stand together: they share their anchor, and mostly their positives. Anchors stand beside those
that share their negatives, as what is hard for one is hard for those that look like it. Objects stay mixed: a batch of
one or two pulls their photos together wherever they lie.
The loss and its gradient are those of the network applied to all three images of every triplet.

A batch is divided among the replicas so that an anchor's triplets go to the machine that keeps its activations, as far
as all get equally many.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

OBJECT = 1 / 4  # the share of a batch beyond which no anchor of the same object joins it
NEAR = 32  # of the anchors that share an image, how many are considered: some images are hard for very many


@dataclass(frozen=True)
class Share:
    """A replica's part of a batch: the distinct `rows` (U,), and its triplets as `indices` (3, B) into them:
    anchors, positives, negatives.
    """

    rows: np.ndarray
    indices: np.ndarray


def epoch(
    triplets: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    *,
    machines: np.ndarray,
    owners: np.ndarray,
    generator: np.random.Generator,
) -> Iterator[list[Share]]:
    """The epoch's batches, each as the shares of all replicas, from `triplets` (T, 3) of rows; `labels` of all rows.

    `machines` (R,) is that of each replica, `owners` that which keeps each row.
    Batches come in random order. As many random triplets as would not fill a batch are left out; where there are fewer
    than one batch takes, that one is smaller. The batches are the same for any number of replicas, and each replica
    has a share of all of them: with fewer triplets in a batch than replicas, there is no batch.
    """
    size = min(batch_size, len(triplets))
    count = len(triplets) // size if size >= len(machines) else 0
    chosen = triplets[generator.permutation(len(triplets))[: count * size]]
    ordered = chosen[_Anchors(chosen, labels, size, generator).order()]
    for start in generator.permutation(count) * size:
        batch = ordered[start : start + size]
        replicas = _divided(owners[batch[:, 0]], machines)
        yield [_share(batch[replicas == replica]) for replica in range(len(machines))]


def _divided(owners: np.ndarray, machines: np.ndarray) -> np.ndarray:
    """The replica of each triplet (B,): one on its owner's machine while that has room. The replicas' shares differ by
    one triplet at most, and neighbours stay together.
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
    """Brings the anchors of `triplets`, with all their triplets, into an order for batches of `size`."""

    def __init__(self, triplets: np.ndarray, labels: np.ndarray, size: int, generator: np.random.Generator) -> None:
        self._size, self._labels = size, labels
        self._places: dict[int, list[int]] = defaultdict(list)
        for place in generator.permutation(len(triplets)).tolist():
            self._places[int(triplets[place, 0])].append(place)
        self._images = {anchor: set(triplets[places].ravel().tolist()) for anchor, places in self._places.items()}
        # Dictionaries without values: sets that keep the random order.
        self._left = dict.fromkeys(self._places)
        self._sharers: dict[int, dict[int, None]] = defaultdict(dict)
        for anchor, images in self._images.items():
            for image in images:
                self._sharers[image][anchor] = None

    def order(self) -> list[int]:
        """Positions in the triplets: those of an anchor at random, then those of the anchor of whose images the batch
        holds the largest share, and so on.
        """
        order: list[int] = []
        self._begin()
        while self._left:
            anchor = self._next()
            self._remove(anchor)
            order += self._places[anchor]
            over = len(order) % self._size
            if over < len(self._places[anchor]):  # it filled the batch, and the next begins with the rest of it
                self._begin()
            if over:
                self._take(anchor, min(over, len(self._places[anchor])))
        return order

    def _begin(self) -> None:
        self._held: set[int] = set()
        self._shared: Counter[int] = Counter()  # for the anchors left, how many of their images the batch holds
        self._of_object: Counter[str] = Counter()

    def _remove(self, anchor: int) -> None:
        del self._left[anchor], self._shared[anchor]
        for image in self._images[anchor]:
            del self._sharers[image][anchor]

    def _take(self, anchor: int, triplets: int) -> None:
        self._of_object[self._labels[anchor]] += triplets
        for image in self._images[anchor] - self._held:
            self._held.add(image)
            self._shared.update(islice(self._sharers[image], NEAR))

    def _next(self) -> int:
        sharing = filter(self._fits, self._shared)
        best = max(sharing, key=lambda anchor: self._shared[anchor] / len(self._images[anchor]), default=None)
        if best is not None:
            return best
        return next(filter(self._fits, self._left), next(iter(self._left)))

    def _fits(self, anchor: int) -> bool:
        present = self._of_object[self._labels[anchor]]
        return not present or present + len(self._places[anchor]) <= OBJECT * self._size


def _share(triplets: np.ndarray) -> Share:
    rows, indices = np.unique(triplets.T, return_inverse=True)
    return Share(rows, indices.reshape(3, -1))
