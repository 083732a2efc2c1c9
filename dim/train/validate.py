"""mAP while training: protocol `labels` on descriptors in memory, as `dim.evaluate` computes it from a store."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from dim.evaluate import metrics
from dim.search import exact

LISTED = 10  # of each list that is kept


def mean_average_precision(vectors: np.ndarray, labels: np.ndarray, image_ids: np.ndarray) -> float | None:
    """The mean trapezoid AP of each row of `vectors` (N, D) as a query among the others; positives share its label.

    Rows without a positive are left out of the mean; None where there is no other row. `labels` (N,): str or None.
    """
    return metrics.mean(ap for ap, _ in _judged(vectors, labels, image_ids))


def rankings(vectors: np.ndarray, labels: np.ndarray, image_ids: np.ndarray) -> pa.Table:
    """The same queries one by one: `query_id`, `ap` (null without a positive), and what heads the list of each: the
    ids `found` and their `scores`.
    """
    rows: dict[str, list[object]] = {"query_id": [], "ap": [], "found": [], "scores": []}
    place = exact.places(image_ids)
    for query, (ap, scores) in enumerate(_judged(vectors, labels, image_ids)):
        best = exact.best(scores, LISTED, place)
        values = (image_ids[query], ap, image_ids[best].tolist(), scores[best].tolist())
        for column, value in zip(rows.values(), values, strict=True):
            column.append(value)
    types = (pa.string(), pa.float64(), pa.list_(pa.string()), pa.list_(pa.float64()))
    return pa.table({name: pa.array(column, kind) for (name, column), kind in zip(rows.items(), types, strict=True)})


def _judged(
    vectors: np.ndarray, labels: np.ndarray, image_ids: np.ndarray
) -> Iterator[tuple[float | None, np.ndarray]]:
    """Each query's AP and its scores (N,), its own −inf."""
    place = exact.places(image_ids)
    for query, scores in enumerate(exact.scores(vectors, [vectors], len(vectors))):
        positives = np.flatnonzero(labels == labels[query]) if labels[query] is not None else np.zeros(0, np.int64)
        positives = positives[positives != query]
        scores[query] = -np.inf
        yield metrics.average_precision(np.sort(exact.ranks(scores, positives, place)), len(positives)), scores
