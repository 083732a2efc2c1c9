"""Groups of photos: connected by near neighbours, then split by average linkage."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dim.app import tasks
from dim.group.corrections import Corrections
from dim.group.linkage import average_linkage
from dim.group.neighbours import Neighbours
from dim.group.union_find import UnionFind
from dim.search.database import Exact
from dim.search.exact_scores import on_grid

LARGEST = 8192  # groups that average linkage compares with each other
UNIT_ROWS = 4096  # least photos of a unit of work, but for the last
_RISE = 0.25  # how far the threshold of a too large component rises, as a share of what is missing to 1
_SAME = 0.999  # photos that a chain of so similar pairs connects are a group, however many they are


@dataclass(frozen=True)
class Grouping:
    """The groups of N photos.

    Attributes:
        groups: A photo that names the group of each photo, its first one by image id, int64 (N,).
        within: The mean similarity of each photo to the others of its group, float64 (N,); NaN if it is alone.
        medoids: The photo with the greatest such mean in each photo's group, int64 (N,).
        similarity: The similarity of each photo to its medoid, float64 (N,).
    """

    groups: np.ndarray
    within: np.ndarray
    medoids: np.ndarray
    similarity: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """The number of photos in each photo's group, int64 (N,)."""
        sizes: np.ndarray = np.bincount(self.groups, minlength=len(self.groups))[self.groups]
        return sizes


def rows_within(share: int, dimension: int) -> int:
    """The most descriptors of `dimension` values that a process may hold in `share` bytes: as float32 and float64."""
    return max(1, share // (12 * dimension))


def alone(size: int) -> Grouping:
    """A grouping in which each of `size` photos is alone."""
    return Grouping(np.arange(size), np.full(size, np.nan), np.arange(size), np.ones(size))


def members(names: np.ndarray, tie_order: np.ndarray, among: np.ndarray | None = None) -> list[np.ndarray]:
    """The photos that have the same name in `names` (N,), where two or more have it, both in the order of image ids.

    Only the photos `among` are looked at, by default all.
    """
    rows = np.arange(len(names)) if among is None else among
    rows = rows[np.argsort(tie_order[rows])]
    _, first, code, sizes = np.unique(names[rows], return_index=True, return_inverse=True, return_counts=True)
    rows = rows[np.argsort(first[code], kind="stable")]
    starts = np.cumsum(sizes[np.argsort(first)])[:-1]
    return [found for found in np.split(rows, starts) if len(found) > 1]


@dataclass(frozen=True)
class Grouper:
    """Groups the photos of `database`. A process holds at most `most_rows` descriptors.

    The neighbours of each photo are in `lists`, in which a score may be too low by `slack`.
    """

    database: Exact
    lists: Neighbours
    slack: float
    corrections: Corrections
    most_rows: int

    def union(self) -> UnionFind:
        """The components before any edge: photos that the corrections say are the same."""
        union = UnionFind(len(self.lists))
        union.join(*self.corrections.same.T)
        return union

    def grouped(self, threshold: float) -> Grouping:
        """Groups all photos, so that no two groups of a component have a mean similarity of `threshold` or more."""
        tie_order = self.database.tie_order
        union, begin = self.union(), alone(len(self.lists))
        begin.groups[:] = union.roots()
        for edges in self.lists.edges(threshold - self.slack):
            union.join(*edges)
        found = members(union.roots(), tie_order)
        giants = [one for one in found if len(one) > LARGEST]
        pieces = [piece for giant in giants for piece in self._pieces(giant, threshold, begin.groups)]
        result = self.link([one for one in found if len(one) <= LARGEST] + pieces, threshold, begin)
        for giant in giants:
            result = self._merged(giant, threshold, result)
        return result

    def link(self, components: Sequence[np.ndarray], threshold: float, begin: Grouping) -> Grouping:
        """Merges the groups of `begin` within each component. Other photos keep their groups."""
        result = Grouping(*(values.copy() for values in vars(begin).values()))
        for window in _batches(components, self.most_rows):
            vectors = self.database.take(np.concatenate(window))
            units, start = [], 0
            for batch in _batches(window, UNIT_ROWS):
                rows = np.concatenate(batch)
                units.append((vectors[start : start + len(rows)], batch, begin.groups[rows]))
                start += len(rows)
            shared = (threshold, self.corrections.apart)
            for position, found in tasks.spread(_linked, units, shared, workers=self.database.workers, light=True):
                rows = np.concatenate(units[position][1])
                for name, values in vars(found).items():
                    vars(result)[name][rows] = values
        return result

    def _pieces(self, giant: np.ndarray, threshold: float, begun: np.ndarray) -> Iterator[np.ndarray]:
        """Splits a component with more than `LARGEST` photos into smaller ones, at higher thresholds.

        Photos that are still connected at `_SAME` get the same group in `begun`.
        """
        threshold += _RISE * (1 - threshold)
        union = self.union()
        inside = np.zeros(len(self.lists), bool)
        inside[giant] = True
        for one, other in self.lists.edges(threshold - self.slack):
            union.join(one[kept := inside[one] & inside[other]], other[kept])
        for piece in members(union.roots(), self.database.tie_order, giant):
            if len(piece) > LARGEST and threshold < _SAME:
                yield from self._pieces(piece, threshold, begun)
                continue
            if len(piece) > LARGEST:
                begun[piece] = piece[0]
            yield piece

    def _merged(self, giant: np.ndarray, threshold: float, result: Grouping) -> Grouping:
        """Merges the groups of the pieces of `giant`, if these are few enough."""
        names, groups = np.unique(result.groups[giant], return_inverse=True)
        if len(names) > LARGEST:
            return result
        order = np.argsort(np.argsort(self.database.tie_order[names]))
        groups, names = order[groups], names[np.argsort(self.database.tie_order[names])]
        sums = np.zeros((len(names), 1))
        for start in range(0, len(giant), self.most_rows):
            rows = slice(start, start + self.most_rows)
            sums = sums + _sums(on_grid(self.database.take(giant[rows])), groups[rows], len(names))
        apart = groups[_within(giant, self.corrections.apart)]
        into = average_linkage(sums, np.bincount(groups), threshold, apart)
        result.groups[giant] = names[into[groups]]
        changed = np.isin(result.groups[giant], names[np.unique(into[into != np.arange(len(into))])])
        return self.link(members(result.groups, self.database.tie_order, giant[changed]), threshold, result)


def _batches(components: Sequence[np.ndarray], rows: int) -> Iterator[list[np.ndarray]]:
    """Yields consecutive components that have `rows` photos or more together; the last ones may have fewer."""
    batch: list[np.ndarray] = []
    held = 0
    for component in components:
        batch.append(component)
        held += len(component)
        if held >= rows:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _linked(unit: tuple[np.ndarray, list[np.ndarray], np.ndarray], threshold: float, apart: np.ndarray) -> Grouping:
    """Links each component of a unit: the descriptors of its photos, their rows, and their groups at the beginning."""
    vectors, components, begun = unit
    found, start = [], 0
    for rows in components:
        some = slice(start, start + len(rows))
        found.append(_link(on_grid(vectors[some]), rows, begun[some], threshold, _within(rows, apart)))
        start += len(rows)
    return Grouping(*(np.concatenate(columns) for columns in zip(*(vars(one).values() for one in found), strict=True)))


def _link(vectors: np.ndarray, rows: np.ndarray, begun: np.ndarray, threshold: float, apart: np.ndarray) -> Grouping:
    """The groups of the photos `rows` (n,) of a component, with the descriptors `vectors`, float64 (n, D)."""
    _, first, groups = np.unique(begun, return_index=True, return_inverse=True)
    groups = np.argsort(np.argsort(first))[groups]  # in the order of their first photos
    sizes = np.bincount(groups)
    sums = _sums(vectors, groups, len(sizes))
    groups = average_linkage(sums, sizes, threshold, groups[apart])[groups]
    _, first, groups, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    own = np.einsum("ij,ij->i", vectors, _sums(vectors, groups, len(sizes))[groups])
    with np.errstate(invalid="ignore"):  # 0 / 0 is the mean similarity of a photo that is alone
        within = np.where(sizes[groups] > 1, own - np.einsum("ij,ij->i", vectors, vectors), 0) / (sizes[groups] - 1)
    best = np.lexsort((np.arange(len(rows)), -np.round(within, 9), groups))  # of each group the medoid comes first
    medoids = best[np.searchsorted(groups[best], np.arange(len(sizes)))][groups]
    similarity = np.einsum("ij,ij->i", vectors, vectors[medoids])
    return Grouping(rows[first[groups]], within, rows[medoids], similarity)


def _sums(vectors: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """The sum of the vectors of each of `count` groups, float64 (count, D)."""
    order = np.argsort(groups, kind="stable")
    present, starts = np.unique(groups[order], return_index=True)
    sums = np.zeros((count, vectors.shape[1]))
    sums[present] = np.add.reduceat(vectors[order], starts, axis=0)
    return sums


def _within(rows: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The places in `rows` (n,) of those of the `pairs` (P, 2) of photos of which both are there, int64 (Q, 2)."""
    order = np.argsort(rows)
    place = np.minimum(np.searchsorted(rows, pairs, sorter=order), len(rows) - 1)
    both: np.ndarray = (rows[order[place]] == pairs).all(axis=1)
    places: np.ndarray = order[place[both]]
    return places
