"""Finds the photos that an audit suspects. There are three kinds of suspects:

- `label`: another label has more evidence than the photo's own label. The score is the difference between the two (see
  `evidence`). `other` is the nearest photo that has the other label.
- `duplicate`: two photos are nearly identical, but have different labels or splits. The score is their cosine.
- `far`: even the nearest photo with the same label, `other`, is less similar to the photo than two photos are on
  average. The score is the difference between the two similarities, divided by `Evidence.scale`.

If each of two splits has n near-identical photos, they form n² pairs of duplicates. Only the nearest pairs are listed,
but all pairs are counted: `pairs` is the number of duplicates with the same two labels and splits as the listed pair.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dim.audit.evidence import crowding, evidence
from dim.search import exact
from dim.search.database import Exact, from_array, neighbours

LABEL, DUPLICATE, FAR = KINDS = ("label", "duplicate", "far")
NEAREST = 10  # neighbours per photo, which give the crowding and the duplicates of the photo
PAIRS_OF_A_GROUP, PAIRS_IN_ALL = 1000, 100_000  # most pairs listed; a group has the same two labels and splits
SCHEMA = pa.schema(
    [("kind", pa.string()), ("rank", pa.int64()), ("score", pa.float64())]
    + [(name, pa.string()) for name in ("image_id", "label", "split", "other_id", "other_label", "other_split")]
    + [("pairs", pa.int64())]
)


@dataclass(frozen=True)
class AuditedPhotos:
    """The photos of an audit.

    `vectors` are L2-normalised descriptors, float32 (N, D). The other fields are object arrays (N,) of str or None.
    """

    vectors: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    splits: np.ndarray


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


def suspects(photos: AuditedPhotos, least_score: float, least_cosine: float) -> tuple[list[Suspect], int]:
    """Finds the suspects among `photos`. At least two labels must occur, and one of them at least twice.

    `least_score` is the least score of a `label` suspect, `least_cosine` the least cosine of duplicates.

    Returns:
        The suspects and the number of all pairs of duplicates. The suspects are sorted by kind (in the order of
        `KINDS`), then from the highest to the lowest score, then by image id.
    """
    tie_order = exact.tie_order_of(photos.ids)
    database = from_array(photos.vectors, tie_order)
    rows, scores = neighbours(database, min(NEAREST, len(photos.ids) - 1))
    found, total = duplicates(database, _sides(photos), rows, scores, least_cosine)
    found += _label_and_far(photos, crowding(scores), least_score)
    found.sort(key=lambda one: (KINDS.index(one.kind), -one.score, tie_order[one.row], tie_order[one.other]))
    return found, total


def _sides(photos: AuditedPhotos) -> np.ndarray:
    """Numbers the combinations of a label and a split from 0. Returns the number of each photo's combination, (N,)."""
    codes: dict[tuple[str | None, str | None], int] = {}
    return np.array([codes.setdefault(side, len(codes)) for side in zip(photos.labels, photos.splits, strict=True)])


def duplicates(
    database: Exact, sides: np.ndarray, rows: np.ndarray, scores: np.ndarray, least: float
) -> tuple[list[Suspect], int]:
    """Finds the pairs of rows with different `sides` and a cosine of `least` or more. Lists the nearest, counts all.

    `sides` (N,) are from `_sides`. `rows` and `scores` (N, k) are what `neighbours` returns for the database.
    """
    totals: Counter[int] = Counter()
    kept = np.zeros((0, 4))
    waiting: list[np.ndarray] = []
    held = 0
    for pairs in _near_pairs(database, rows, scores, least):
        one, other = pairs[:, :2].astype(np.int64).T
        differ = (one < other) & (sides[one] != sides[other])  # each pair comes in both orders; count it once
        if not differ.any():
            continue
        both = np.sort([sides[one[differ]], sides[other[differ]]], axis=0)
        group = both[0] * len(sides) + both[1]
        totals.update(group.tolist())
        waiting.append(np.column_stack([group, pairs[differ]]))
        held += len(group)
        if held > PAIRS_IN_ALL:
            kept, waiting, held = _nearest_pairs(np.concatenate([kept, *waiting])), [], 0
    kept = _nearest_pairs(np.concatenate([kept, *waiting]))
    listed = ((int(row), int(other), score, totals[int(group)]) for group, row, other, score in kept.tolist())
    return [Suspect(row, DUPLICATE, score, other, pairs) for row, other, score, pairs in listed], totals.total()


def _near_pairs(database: Exact, rows: np.ndarray, scores: np.ndarray, least: float) -> Iterator[np.ndarray]:
    """Yields all pairs with a cosine of `least` or more, in both orders, as (P, 3): row, other or same row, cosine."""
    all_near = scores[:, -1] >= least  # rows that may have more than k near rows
    near, place = np.nonzero((scores >= least) & ~all_near[:, None])
    yield np.column_stack([near, rows[near, place], scores[near, place]])
    full = np.flatnonzero(all_near)
    for row, found in zip(full, database.scores(database.take(full)), strict=True):
        others = np.flatnonzero(found >= least)
        yield np.column_stack([np.full(len(others), row), others, found[others]])


def _nearest_pairs(pairs: np.ndarray) -> np.ndarray:
    """Selects the pairs to list. `pairs` (P, 4) has the columns group, row, other row and cosine."""
    group, one, other, score = pairs.T
    pairs = pairs[np.lexsort((other, one, -score, group))]
    pairs = pairs[np.arange(len(pairs)) - np.searchsorted(pairs[:, 0], pairs[:, 0]) < PAIRS_OF_A_GROUP]
    return pairs[np.lexsort((pairs[:, 2], pairs[:, 1], -pairs[:, 3]))[:PAIRS_IN_ALL]]


def _label_and_far(photos: AuditedPhotos, crowded: np.ndarray, least: float) -> Iterator[Suspect]:
    """Yields the suspects of the kinds `label` and `far`. `crowded` (N,) is the photos' `crowding`."""
    used = np.flatnonzero([label is not None for label in photos.labels])
    _, codes = np.unique(photos.labels[used].astype(str), return_inverse=True)
    found = evidence(photos.vectors[used], codes, crowded[used])
    order = np.argsort(codes, kind="stable")
    members = np.split(used[order], np.searchsorted(codes[order], np.arange(1, codes.max() + 1)))
    claims = (found.score >= least) & (found.other > 0)
    for row, label, score, claimed, other_label in zip(
        used.tolist(), codes, found.score, claims, found.other_label, strict=True
    ):
        if len(members[label]) < 2:
            continue  # no other photo has the same label
        if claimed:
            _, other = _nearest(photos, crowded, row, members[other_label])
            yield Suspect(row, LABEL, float(score), other)
            continue
        likeness, other = _nearest(photos, crowded, row, members[label][members[label] != row])
        if likeness < found.any_pair:
            yield Suspect(row, FAR, (found.any_pair - likeness) / found.scale, other)


def _nearest(photos: AuditedPhotos, crowded: np.ndarray, row: int, others: np.ndarray) -> tuple[float, int]:
    """Finds the row of `others` that has the largest similarity c (see `evidence`) to `row`. Returns c and the row."""
    likeness = 2 * (photos.vectors[others] @ photos.vectors[row]) - crowded[others] - crowded[row]
    best = int(likeness.argmax())
    return float(likeness[best]), int(others[best])


def table(photos: AuditedPhotos, found: list[Suspect]) -> pa.Table:
    """Makes the table of suspects.parquet, with the columns of `SCHEMA`. In each kind, the ranks start at 1."""
    ranks = dict.fromkeys(KINDS, 0)
    rows: list[dict[str, Any]] = []
    for one in found:
        ranks[one.kind] += 1
        row = {"rank": ranks[one.kind], "kind": one.kind, "score": round(one.score, 6), "pairs": one.pairs}
        for prefix, photo in (("", one.row), ("other_", one.other)):
            row |= {f"{prefix}label": photos.labels[photo], f"{prefix}split": photos.splits[photo]}
            row["other_id" if prefix else "image_id"] = photos.ids[photo]
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=SCHEMA)
