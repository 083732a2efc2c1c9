"""Chooses the threshold without labels: the one whose groups are most distinct.

How distinct the group of a photo is, is measured by the silhouette (Rousseeuw, "Silhouettes: a graphical aid to the
interpretation and validation of cluster analysis", 1987), with distances 1 − cosine. For a photo with the mean
similarity a to the others of its group, and the similarity b to the nearest photo outside, it is

    s = (a − b) / max(1 − a, 1 − b),

and 0 for a photo that is alone. (Rousseeuw compares with the nearest group. The nearest photo is on the photo's list of
neighbours, and makes the choice more careful.) Thresholds are tried from the highest to the lowest, and the threshold
with the greatest mean s is chosen. The lowest is what two random photos reach in 2 % of cases.
"""

import logging
from dataclasses import dataclass

import numpy as np

from dim.app.progress import Progress
from dim.group.components import LARGEST, Grouper, Grouping, alone, members
from dim.group.neighbours import Neighbours
from dim.search.exact_scores import on_grid

SAMPLE = 10_000  # photos whose groups are judged, at most
MOST_LINKED = 2**16  # photos that are grouped at each threshold, to judge those of the sample
_STEPS = 40
_RANDOM = 2000  # photos whose pairs stand for random pairs
_ABOVE_RANDOM = 2.0  # standard deviations of the similarity of random pairs from their mean to the lowest threshold
_ENOUGH = 0.7  # the search ends when the mean silhouette has fallen to this share of the greatest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Curve:
    """What each threshold gives: `groups` of two or more, the share of photos in them, the largest, and the silhouette.

    Of many photos, these are figures of a sample. All arrays are (T,), with the thresholds descending.
    """

    thresholds: np.ndarray
    groups: np.ndarray
    grouped: np.ndarray
    largest: np.ndarray
    silhouette: np.ndarray

    @property
    def best(self) -> float:
        """The threshold with the greatest silhouette, of equal ones the highest."""
        return float(self.thresholds[self.silhouette.argmax()])


def curve(grouper: Grouper) -> Curve:
    """Groups a sample of the photos, with all photos of their components, at falling thresholds."""
    lists, tie_order = grouper.lists, grouper.database.tie_order
    sample = np.random.default_rng(0).permutation(evenly(tie_order, SAMPLE))
    union, groups = grouper.union(), alone(len(lists))
    groups.groups[:] = union.roots()
    rows, above = [], np.inf
    thresholds = _thresholds(grouper)
    progress = Progress("grouping", len(thresholds), "thresholds")
    for threshold in thresholds:
        for edges in lists.edges(threshold - grouper.slack, above):
            union.join(*edges)
        above = threshold - grouper.slack
        roots = union.roots()
        judged = _judged(roots, sample)
        inside = np.zeros(len(lists), bool)
        inside[roots[judged]] = True
        groups = grouper.link(members(roots, tie_order, np.flatnonzero(inside[roots])), threshold, groups)
        rows.append((threshold, *_figures(groups, lists, judged)))
        progress.add(1)
        best = max(row[-1] for row in rows)
        if not len(judged) or rows[-1][-1] < _ENOUGH * best:
            break
    return Curve(*map(np.array, zip(*rows, strict=True)))


def _judged(roots: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """The first photos of `sample` whose components, `roots` (N,), have at most `MOST_LINKED` photos together.

    A photo of a component with more than `LARGEST` photos is left out.
    """
    sizes = np.bincount(roots, minlength=len(roots))
    sample = sample[sizes[roots[sample]] <= LARGEST]
    _, first = np.unique(roots[sample], return_index=True)
    new = np.zeros(len(sample), np.int64)
    new[first] = sizes[roots[sample[first]]]
    return sample[np.cumsum(new) <= MOST_LINKED]


def evenly(tie_order: np.ndarray, count: int) -> np.ndarray:
    """At most `count` photos at equal distances in the order of the image ids, int64."""
    places = np.unique(np.linspace(0, len(tie_order) - 1, min(count, len(tie_order))).round().astype(np.int64))
    return np.argsort(tie_order)[places]


def silhouettes(groups: Grouping, lists: Neighbours, rows: np.ndarray) -> np.ndarray:
    """The silhouette of each photo in `rows`, float64 (R,)."""
    listed = lists.rows[rows]
    outside = (listed >= 0) & (groups.groups[listed] != groups.groups[rows][:, None])
    # If all neighbours are of the group, the nearest photo outside is at most as similar as the last of them.
    place = np.where(outside.any(axis=1), outside.argmax(axis=1), np.maximum((listed >= 0).sum(axis=1) - 1, 0))
    nearest = np.nan_to_num(lists.scores[rows, place], neginf=-1.0)
    within = np.nan_to_num(groups.within[rows], nan=0.0)
    farther = np.maximum(np.maximum(1 - within, 1 - nearest), 1e-9)
    found: np.ndarray = np.where(np.isnan(groups.within[rows]), 0.0, (within - nearest) / farther)
    return found


def _thresholds(grouper: Grouper) -> np.ndarray:
    """The thresholds to try, descending: from the greatest similarity of neighbours to the lowest threshold."""
    vectors = on_grid(grouper.database.take(evenly(grouper.database.tie_order, _RANDOM)))
    pairs = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    lowest = pairs.mean() + _ABOVE_RANDOM * pairs.std()
    nearest = grouper.lists.scores[:, 0]
    highest = max(float(nearest.max()), lowest)
    return np.round(np.linspace(highest, lowest, _STEPS), 6)


def _figures(groups: Grouping, lists: Neighbours, rows: np.ndarray) -> tuple[int, float, int, float]:
    """The number of groups, the share of photos in them, the largest group, and the mean silhouette, of `rows`."""
    if not len(rows):
        return 0, 0.0, 0, 0.0
    sizes = groups.sizes[rows]
    count = len(np.unique(groups.groups[rows[sizes > 1]]))
    return count, float((sizes > 1).mean()), int(sizes.max()), float(silhouettes(groups, lists, rows).mean())
