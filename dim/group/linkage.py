"""Average linkage: merges the most similar groups until no two are similar enough.

A chain of similar pairs may lead from one object to another, so connected photos are not yet a group. Average linkage
(UPGMA; Sokal and Michener, "A statistical method for evaluating systematic relationships", 1958) looks at whole groups:
the similarity of two groups is the mean cosine of a photo of the one and a photo of the other. This is the inner
product of the mean descriptors of the groups, so no matrix of all pairs of photos is needed. In a round, all pairs of
groups that are nearest to each other are merged, which gives the same groups as one merge at a time (Murtagh, "A survey
of recent advances in hierarchical clustering algorithms", 1983). A merged group is never nearer to another group than
the nearer of its parts was, so the nearest group of a group stays the same unless it was merged.
"""

import numpy as np

_CELLS = 2**22  # similarities that are computed at a time
_DIGITS = 9  # similarities that round to the same number are equal, so that no rounding error decides


def average_linkage(sums: np.ndarray, sizes: np.ndarray, threshold: float, apart: np.ndarray) -> np.ndarray:
    """Merges the groups whose mean similarity is `threshold` or more, the most similar ones first.

    Of equally similar groups, the first ones are merged first. A group that contains one group of a pair in `apart`
    never gets the other (Davidson and Ravi, "Agglomerative hierarchical clustering with constraints", 2005).

    Args:
        sums: The sum of the descriptors of each group, float64 (m, D). They are on the grid of `exact_scores`, so that
            no sum is rounded.
        sizes: The photos of each group, int64 (m,).
        threshold: The least similarity of two groups that are merged.
        apart: Pairs of groups, int64 (P, 2).

    Returns:
        For each group the first group that it is merged with, or itself, int64 (m,).
    """
    merged_into = np.arange(len(sizes))
    numbers = merged_into  # of the groups that are left
    nearest, similarity = _nearest(sums / sizes[:, None], apart, numbers)
    while len(sizes) > 1:
        own = np.arange(len(sizes))
        mutual = (nearest[nearest] == own) & (similarity >= threshold)
        if not mutual.any():
            break
        into = np.where(mutual, np.minimum(own, nearest), own)
        gone, kept = np.flatnonzero(into != own), np.flatnonzero(into == own)
        sums, sizes = sums.copy(), sizes.copy()
        sums[into[gone]] += sums[gone]
        sizes[into[gone]] += sizes[gone]
        sums, sizes = sums[kept], sizes[kept]
        merged_into = numbers[into][np.searchsorted(numbers, merged_into)]
        places = np.searchsorted(kept, into)  # of the groups among those that are left
        apart, numbers = places[apart], numbers[kept]
        nearest, similarity = places[nearest[kept]], similarity[kept]
        merged = np.isin(np.arange(len(kept)), places[gone])
        again = np.flatnonzero(merged | merged[nearest])
        nearest[again], similarity[again] = _nearest(sums / sizes[:, None], apart, again)
    return merged_into


def _nearest(means: np.ndarray, apart: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most similar other group of each of the `groups` (n,), ascending, int64 (n,), and the similarity, (n,).

    The similarity is −inf if all others are `apart` from a group.
    """
    nearest, best = np.empty(len(groups), np.int64), np.empty(len(groups))
    step = max(1, _CELLS // len(means))
    both = np.concatenate([apart, apart[:, ::-1]])
    for start in range(0, len(groups), step):
        own = groups[start : start + step]
        block = np.round(means[own] @ means.T, _DIGITS)
        rows = np.arange(len(own))
        block[rows, own] = -np.inf
        here = both[np.isin(both[:, 0], own)]
        block[np.searchsorted(own, here[:, 0]), here[:, 1]] = -np.inf
        nearest[start : start + step] = found = block.argmax(axis=1)
        best[start : start + step] = block[rows, found]
    return nearest, best
