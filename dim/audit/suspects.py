"""Pairs of photos that are all but the same, under two labels or in two splits, however many there are of one object.

A burst of n photos in each of two splits has n² such pairs, more than a photo's few nearest others tell of. So a photo
whose nearest others are all this near is held against all photos. Of the pairs between the same two labels and splits
at most `EACH` are listed, and at most `MOST` in all, the nearest; how many there are is counted.

Who is suspected, and of what.

- `label`: another label claims the photo, and more than its own does (`evidence`); `other` is its nearest photo there.
- `duplicate`: two photos all but the same, under two labels or in two splits; the score is their cosine, `pairs` how
  many such pairs there are between these labels and splits (`duplicates`).
- `far`: the photo resembles none of its own label more than two photos drawn at random resemble each other; the score
  is by how much less, in the scale of `evidence`; `other` is the nearest photo of its label.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dim.audit.evidence import crowding, evidence
from dim.search import database as databases
from dim.search import exact
from dim.search.database import Exact, from_array

PAIRS_OF_A_GROUP, PAIRS_IN_ALL = 1000, 100_000


@dataclass(frozen=True)
class Duplicate:
    """Two rows, `one` before `other`, their cosine, and how many pairs there are between their labels and splits."""

    one: int
    other: int
    score: float
    pairs: int


def duplicates(
    database: Exact, sides: np.ndarray, rows: np.ndarray, scores: np.ndarray, least: float
) -> tuple[list[Duplicate], int]:
    """The pairs of rows of two `sides` (N,), codes from 0, with a cosine of `least` or more, and how many there are.

    `rows` and `scores` (N, k) are the nearest others of each row, as `neighbours.others` has them.
    """
    totals: Counter[int] = Counter()
    kept = np.zeros((0, 4))
    waiting: list[np.ndarray] = []
    held = 0
    for pairs in _near(database, rows, scores, least):
        one, other = pairs[:, :2].astype(np.int64).T
        differ = (one < other) & (sides[one] != sides[other])  # each pair is found from both of its ends
        if not differ.any():
            continue
        both = np.sort([sides[one[differ]], sides[other[differ]]], axis=0)
        group = both[0] * len(sides) + both[1]
        totals.update(group.tolist())
        waiting.append(np.column_stack([group, pairs[differ]]))
        held += len(group)
        if held > PAIRS_IN_ALL:
            kept, waiting, held = _best(np.concatenate([kept, *waiting])), [], 0
    kept = _best(np.concatenate([kept, *waiting]))
    listed = [Duplicate(int(one), int(other), score, totals[int(group)]) for group, one, other, score in kept.tolist()]
    return listed, totals.total()


def _near(database: Exact, rows: np.ndarray, scores: np.ndarray, least: float) -> Iterator[np.ndarray]:
    """Every two rows with a cosine of `least` or more, each pair from both ends: row, other row, cosine (P, 3)."""
    all_near = scores[:, -1] >= least  # so that there may be more
    near, place = np.nonzero((scores >= least) & ~all_near[:, None])
    yield np.column_stack([near, rows[near, place], scores[near, place]])
    full = np.flatnonzero(all_near)
    for row, found in zip(full, database.scores(database.take(full)), strict=True):
        others = np.flatnonzero(found >= least)
        yield np.column_stack([np.full(len(others), row), others, found[others]])


def _best(pairs: np.ndarray) -> np.ndarray:
    """The `MOST` nearest of the `EACH` nearest of each group; `pairs` (P, 4) are group, row, other row, cosine."""
    group, one, other, score = pairs.T
    pairs = pairs[np.lexsort((other, one, -score, group))]
    pairs = pairs[np.arange(len(pairs)) - np.searchsorted(pairs[:, 0], pairs[:, 0]) < PAIRS_OF_A_GROUP]
    return pairs[np.lexsort((pairs[:, 2], pairs[:, 1], -pairs[:, 3]))[:PAIRS_IN_ALL]]


LABEL, DUPLICATE, FAR = KINDS = ("label", "duplicate", "far")
NEAREST = 10
SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("rank", pa.int64()),
        ("score", pa.float64()),
        ("image_id", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("other_id", pa.string()),
        ("other_label", pa.string()),
        ("other_split", pa.string()),
        ("pairs", pa.int64()),
    ]
)


@dataclass(frozen=True)
class AuditedPhotos:
    """What is audited: L2-normalised `vectors` float32 (n, D); ids, labels and splits, object arrays (n,), the labels
    and splits of str or None.
    """

    vectors: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    splits: np.ndarray


@dataclass(frozen=True)
class Suspect:
    """A photo (its row), what it is suspected of, by what score, and the other photo (its row) that speaks for it; of a
    duplicate, how many pairs there are between the same labels and splits.
    """

    row: int
    kind: str
    score: float
    other: int
    pairs: int | None = None


def suspects(photos: AuditedPhotos, least_score: float, least_cosine: float) -> tuple[list[Suspect], int]:
    """The suspects, kind by kind in the order of `KINDS`, the highest score first, ties by id; and how many pairs of
    duplicates there are, of which `duplicates` bounds how many are listed.

    There must be two labels, and one of them must have two photos.
    """
    place = exact.tie_order_of(photos.ids)
    database = from_array(photos.vectors, place)
    rows, scores = databases.neighbours(database, min(NEAREST, len(photos.ids) - 1))
    pairs, total = duplicates(database, _sides(photos), rows, scores, least_cosine)
    found = [Suspect(pair.one, DUPLICATE, pair.score, pair.other, pair.pairs) for pair in pairs]
    found += _of_labels(photos, crowding(scores), least_score)
    return sorted(found, key=lambda one: (KINDS.index(one.kind), -one.score, place[one.row], place[one.other])), total


def _sides(photos: AuditedPhotos) -> np.ndarray:
    """A number for each photo's label and split, the same for the same two, (n,)."""
    numbers: dict[tuple[str | None, str | None], int] = {}
    both = zip(photos.labels, photos.splits, strict=True)
    return np.array([numbers.setdefault(side, len(numbers)) for side in both])


def _of_labels(photos: AuditedPhotos, crowded: np.ndarray, least: float) -> Iterator[Suspect]:
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
            continue  # nothing speaks for it, and nothing against it
        if claimed:
            _, other = _nearest(photos, crowded, row, members[other_label])
            yield Suspect(row, LABEL, float(score), other)
            continue
        likeness, other = _nearest(photos, crowded, row, members[label][members[label] != row])
        if likeness < found.any_pair:
            yield Suspect(row, FAR, (found.any_pair - likeness) / found.scale, other)


def _nearest(photos: AuditedPhotos, crowded: np.ndarray, row: int, others: np.ndarray) -> tuple[float, int]:
    """The largest c of the photo in `row` and one of the rows `others`, and which."""
    likeness = 2 * (photos.vectors[others] @ photos.vectors[row]) - crowded[others] - crowded[row]
    best = int(likeness.argmax())
    return float(likeness[best]), int(others[best])


def table(photos: AuditedPhotos, found: list[Suspect]) -> pa.Table:
    """The suspects as a table with the columns of `SCHEMA`; `rank` is from 1 in each kind."""
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
