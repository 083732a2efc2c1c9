"""The protocols on plain ranked lists, whoever made them."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dim.evaluate.protocols import NOT_LISTED, PROTOCOLS, REVISITED_LEVELS, means, measure


def revisited(ranks: Iterable[Sequence[int]], gnd: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, dict[str, Any]]:
    """ROxford5k and RParis6k (Radenović et al. 1803.11285).

    `ranks` holds a list for each query, database indexes best first; `gnd` for each its indexes under easy, hard and
    junk. Returns for easy, medium and hard the `map`, the `aps` (None for a query without a positive) and `mp`
    ({"1": …, "5": …, "10": …}).
    """
    positions = [_positions(listed, graded) for listed, graded in zip(ranks, gnd, strict=True)]
    known = PROTOCOLS["revisited"].metrics
    result = {}
    for name, level in REVISITED_LEVELS.items():
        queries = [measure(known, *level.ranks(query)) for query in positions]
        result[name] = means(known, queries) | {"aps": [query["map"] for query in queries]}
    return result


def oxford(
    listed: Sequence[Hashable], good: Iterable[Hashable], ok: Iterable[Hashable], junk: Iterable[Hashable]
) -> float | None:
    """The AP of one query of Oxford5k or Paris6k, as the benchmark's `compute_ap` prints it (Philbin et al. 2007).

    `listed` are images best first; good and ok are positive, junk is taken out; an image named twice counts once.
    """
    graded = {"good": list({*good, *ok}), "junk": list(set(junk))}
    return measure(PROTOCOLS["oxford"].metrics, *PROTOCOLS["oxford"].level.ranks(_positions(listed, graded)))["map"]


def _positions(listed: Sequence[Any], graded: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    position = {image: place for place, image in enumerate(listed)}
    return {
        grade: np.array([position.get(image, NOT_LISTED) for image in images], np.int64)
        for grade, images in graded.items()
    }
