"""Batches of triplets in which images are shared, so that each distinct image goes through the network once.

Triplets of one object stand together: the anchor of one is the positive of another, and what is hard for one photo of
an object is hard for the others, so that their negatives are mostly the same images, too.
The loss and its gradient are those of the network applied to all three images of every triplet.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


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

    Objects (what anchors and positives link) come in random order, their anchors too, the triplets of each together.
    What doesn't fill a batch is left out; with fewer triplets than one batch, that one is smaller. The batches are the
    same for any number of replicas, and each has a share in all of them: where they are fewer than that, there is none.
    """
    photos = triplets.max(initial=-1) + 1
    links = coo_array((np.ones(len(triplets)), (triplets[:, 0], triplets[:, 1])), shape=(photos, photos))
    objects = connected_components(links, directed=False)[1] if photos else np.zeros(0, np.int32)
    of_objects, of_anchors = (generator.permutation(photos) for _ in range(2))
    anchors = triplets[:, 0]
    ordered = triplets[np.lexsort((of_anchors[anchors], of_objects[objects[anchors]]))]
    size = min(batch_size, len(ordered))
    starts = np.arange(len(ordered) // size if size >= replicas else 0) * size
    for start in generator.permutation(starts):
        parts = np.array_split(ordered[start : start + size], replicas)
        yield [_share(part) for part in parts]


def _share(triplets: np.ndarray) -> Share:
    rows, indices = np.unique(triplets.T, return_inverse=True)
    return Share(rows, indices.reshape(3, -1))
