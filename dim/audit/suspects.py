"""Finds the photos that an audit suspects. There are three kinds of suspects:

- `label`: another label has more evidence than the photo's own label. The score is the difference between the two (see
  `evidence`). `other` is the nearest photo that has the other label.
- `duplicate`: two photos are nearly identical, but have different labels or splits. The score is their cosine. `pairs`
  is the number of duplicates with the same two labels and splits (see `duplicates`).
- `far`: even the nearest photo with the same label, `other`, is less similar to the photo than two photos are on
  average. The score is the difference between the two similarities, divided by `Evidence.scale`.

All suspects are counted. Of each kind, the `LISTED` with the highest scores are listed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dim.audit import duplicates, within_label
from dim.audit.evidence import Evidence, crowding, evidence
from dim.audit.neighbours import Neighbours
from dim.audit.photos import NONE, AuditedPhotos

LABEL, DUPLICATE, FAR = KINDS = ("label", "duplicate", "far")
LISTED = 100_000  # most suspects of the kinds `label` and `far` that are listed
_SLACK = 1e-9  # more than the rounding error of a mean of similarities
SCHEMA = pa.schema(
    [("kind", pa.string()), ("rank", pa.int64()), ("score", pa.float64())]
    + [(name, pa.string()) for name in ("image_id", "label", "split", "other_id", "other_label", "other_split")]
    + [("pairs", pa.int64())]
)


@dataclass(frozen=True)
class Suspect:
    """A suspected photo: its row, its kind and score, and the row of the photo to compare it with.

    For the kind `duplicate`, the module's docstring defines `pairs`; for other kinds, `pairs` is None.
    """

    row: int
    kind: str
    score: float
    other: int
    pairs: int | None = None


def suspects(
    photos: AuditedPhotos, neighbours: Neighbours, least_score: float, least_cosine: float
) -> tuple[list[Suspect], dict[str, int]]:
    """Finds the suspects among `photos`. At least two labels must occur, and one of them at least twice.

    `least_score` is the least score of a `label` suspect, `least_cosine` the least cosine of duplicates.

    Returns:
        The suspects that are listed, sorted by kind (in the order of `KINDS`), then from the highest to the lowest
        score, then by image id. And the number of all suspects of each kind; of duplicates, of all pairs.
    """
    pairs, total = duplicates.listed(photos, duplicates.near_pairs(photos, neighbours, least_cosine))
    found = [Suspect(int(one), DUPLICATE, score, int(other), int(count)) for one, other, score, count in pairs.tolist()]
    crowded = crowding(neighbours.scores)
    seen = evidence(photos, neighbours)
    paired = np.flatnonzero(np.where(photos.labels == NONE, 0, seen.counts[photos.labels]) > 1)
    claimed = (seen.score[paired] >= least_score) & (seen.other[paired] > 0)
    wrong, rest = paired[claimed], paired[~claimed]
    first = _highest(photos, wrong, seen.score)
    others, _ = within_label.nearest(photos, first, seen.other_label[first], crowded)
    found += _listed(LABEL, first, seen.score[first], others)
    far, others, scores = _far(photos, crowded, seen, rest)
    first = _highest(photos, far, scores)
    found += _listed(FAR, first, scores[first], others[first])
    order = photos.tie_order
    found.sort(key=lambda one: (KINDS.index(one.kind), -one.score, order[one.row], order[one.other]))
    return found, {LABEL: len(wrong), DUPLICATE: total, FAR: len(far)}


def _far(
    photos: AuditedPhotos, crowded: np.ndarray, seen: Evidence, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds those of the photos `rows` that are far from their label.

    Returns their rows, and by row, (N,): the nearest photo of the same label, and the score.
    """
    # The nearest photo is at least as similar as the mean, so only these photos are compared with all of their label.
    mean = seen.mean_within(photos.labels)[rows]
    rows = rows[mean < seen.any_pair + _SLACK]
    nearest, likeness = within_label.nearest(photos, rows, photos.labels[rows], crowded)
    others, scores = np.full(len(photos), NONE), np.full(len(photos), -np.inf)
    others[rows], scores[rows] = nearest[:, 0], (seen.any_pair - likeness[:, 0]) / seen.scale
    return rows[scores[rows] > 0], others, scores


def _highest(photos: AuditedPhotos, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The `LISTED` of `rows` with the highest of the `scores` (N,). Of equal ones, the first image id counts."""
    return rows[np.lexsort((photos.tie_order[rows], -scores[rows]))[:LISTED]]


def _listed(kind: str, rows: np.ndarray, scores: np.ndarray, others: np.ndarray) -> list[Suspect]:
    columns = rows.tolist(), scores.tolist(), others.reshape(-1).tolist()
    return [Suspect(row, kind, score, other) for row, score, other in zip(*columns, strict=True)]


def table(photos: AuditedPhotos, found: list[Suspect]) -> pa.Table:
    """Makes the table of suspects.parquet, with the columns of `SCHEMA`. In each kind, the ranks start at 1."""
    ranks = dict.fromkeys(KINDS, 0)
    rows: list[dict[str, Any]] = []
    for one in found:
        ranks[one.kind] += 1
        row = {"rank": ranks[one.kind], "kind": one.kind, "score": round(one.score, 6), "pairs": one.pairs}
        for prefix, photo in (("", one.row), ("other_", one.other)):
            row |= {f"{prefix}label": photos.label(photo), f"{prefix}split": photos.split(photo)}
            row["other_id" if prefix else "image_id"] = photos.id(photo)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=SCHEMA)
