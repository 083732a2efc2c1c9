"""The retrieval read as classification: the seed's accuracy and report, and the true report beside it."""

from collections.abc import Sequence
from typing import Any

from sklearn.metrics import classification_report

NO_LABEL = "(no label)"


def top_k_accuracy(labels: Sequence[str], nearest: Sequence[Sequence[str | None]]) -> float:
    """The share of queries whose label is among those of their nearest photos (what the seed called mAP)."""
    return sum(label in found for label, found in zip(labels, nearest, strict=True)) / len(labels)


def reports(labels: Sequence[str], nearest: Sequence[Sequence[str | None]]) -> dict[str, Any]:
    """Precision, recall and F1 of each label, for queries with `labels` and the labels of their nearest photos.

    In `top_k`, the seed's, a query counts as its own label if that is among the nearest, else as the nearest's; it
    flatters. In `top_1` it counts as the nearest's.
    """
    first = [next(iter(found), None) or NO_LABEL for found in nearest]
    any_of = [label if label in found else top for label, found, top in zip(labels, nearest, first, strict=True)]
    return {"top_k": _report(labels, any_of), "top_1": _report(labels, first)}


def _report(labels: Sequence[str], predicted: Sequence[str]) -> dict[str, Any]:
    return dict(classification_report(labels, predicted, output_dict=True, zero_division=0))
