"""Batches of triplets in which images are shared, so that each distinct image goes through the network once.

Triplets of one anchor stand together: their anchor, and mostly their positives and negatives too, are the same images.
The loss and its gradient are those of the network applied to all three images of every triplet.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Share:
    """A replica's part of a batch: the distinct `rows` (U,), and its triplets as `indices` (3, B) into them:
    anchors, positives, negatives.
    """

    rows: np.ndarray
    indices: np.ndarray


def epoch(
    triplets: np.ndarray, batch_size: int, replicas: int, generator: np.random.Generator
) -> Iterator[list[Share]]:
    """The epoch's batches, each as the shares of all `replicas`, from `triplets` (T, 3) of rows.

    Anchors come in random order, an anchor's triplets together. What doesn't fill a batch is left out; with fewer
    triplets than one batch, that one is smaller. The batches are the same for any number of replicas, and each has a
    share in all of them: where they are fewer than that, there is none.
    """
    order = generator.permutation(triplets[:, 0].max(initial=-1) + 1)[triplets[:, 0]]
    ordered = triplets[np.argsort(order, kind="stable")]
    size = min(batch_size, len(ordered))
    starts = np.arange(len(ordered) // size if size >= replicas else 0) * size
    for start in generator.permutation(starts):
        parts = np.array_split(ordered[start : start + size], replicas)
        yield [_share(part) for part in parts]


def _share(triplets: np.ndarray) -> Share:
    rows, indices = np.unique(triplets.T, return_inverse=True)
    return Share(rows, indices.reshape(3, -1))
