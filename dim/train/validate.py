"""mAP while training: protocol `labels` on descriptors in memory, as `dim.evaluate` computes it from a store."""

import numpy as np

from dim.evaluate import metrics
from dim.search import exact


def mean_average_precision(vectors: np.ndarray, labels: np.ndarray, image_ids: np.ndarray) -> float | None:
    """The mean trapezoid AP of each row of `vectors` (N, D) as a query among the others; positives share its label.

    Rows without a positive are left out of the mean; None where there is no other row. `labels` (N,): str or None.
    """
    place = exact.places(image_ids)
    found = []
    for query, scores in enumerate(exact.scores(vectors, [vectors], len(vectors))):
        positives = np.flatnonzero(labels == labels[query]) if labels[query] is not None else np.zeros(0, np.int64)
        positives = positives[positives != query]
        scores[query] = -np.inf
        found.append(metrics.average_precision(np.sort(exact.ranks(scores, positives, place)), len(positives)))
    return metrics.mean(found)
