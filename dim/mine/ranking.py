"""Ranks the triplets of all tasks, hardest first, without all of them in one process.

Each task returns a run: its own triplets, sorted. `ranked` divides the runs at some losses into ranges, sorts each
range in a task, and yields the ranges one after the other. Runs and ranges stay in Ray's object store until then.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dim.mine.blocks import StoredPool
from dim.mine.pool import Pool
from dim.mine.remote import Remote
from dim.mine.triplets import Triplets, hardest, joined

ROWS = 1 << 18  # triplets that `ranked` yields at a time
_SAMPLED = 1024  # each run tells the loss of every 1024th of its triplets
_BYTES = 36  # of a triplet
_PIECE = 4096  # least triplets in a piece of a run: Ray keeps results below 100 kB in the memory of the driver


@dataclass(frozen=True)
class Run:
    """References to a run of sorted triplets, and to its `Sizes`."""

    sizes: Any
    triplets: Any


@dataclass(frozen=True)
class Sizes:
    """The counts of a run, and the losses of every `_SAMPLED`th of its triplets, from the first one on."""

    candidates: int
    active: int
    kept: int
    losses: np.ndarray


def run_of(parts: Sequence[Triplets], id_ranks: np.ndarray, top: int | None) -> tuple[Sizes, Triplets]:
    """Makes a run of the triplets of `parts`, at most the `top` hardest ones."""
    triplets = hardest(joined(parts), id_ranks, top)
    return Sizes(triplets.candidates, triplets.active, triplets.kept, triplets.loss[::_SAMPLED]), triplets


@dataclass(frozen=True)
class Ranked:
    """`kept` triplets of `candidates` candidates, `active` of which have a loss above 0.

    `parts` yields the triplets, hardest first, `ROWS` at a time, as positions in the arrays that `mine` was given.
    """

    candidates: int
    active: int
    kept: int
    parts: Iterator[Triplets]

    def whole(self) -> Triplets:
        """All triplets. They are held in memory."""
        return replace(joined([Triplets.none(), *self.parts]), candidates=self.candidates, active=self.active)


def ranked(remote: Remote, stored: StoredPool, runs: Sequence[Run], top: int | None) -> Ranked:
    """Ranks the triplets of all `runs`, each of which has at most `top`, and keeps `top` (None: all)."""
    sizes = [remote.get(run.sizes) for run in runs]
    candidates, active, kept = (sum(getattr(each, name) for each in sizes) for name in ("candidates", "active", "kept"))
    kept = kept if top is None else min(top, kept)
    losses = np.sort(np.concatenate([each.losses for each in sizes]))[::-1]
    bounds = np.unique(losses[:: max(ROWS, stored.share // (4 * _BYTES)) // _SAMPLED][1:])[::-1]  # descending
    pieces = [[run.triplets] for run in runs]
    if len(bounds):
        bundles = _bundled(runs, sizes, _PIECE * (len(bounds) + 1))
        pieces = [remote.call(cut, bounds, *bundle, returns=len(bounds) + 1) for bundle in bundles]
    ranges = [remote.call(sort, stored.reference, top, *of_range)[0] for of_range in zip(*pieces, strict=True)]
    regular = _regular(map(remote.get, ranges), kept)
    return Ranked(candidates, active, kept, (part.at(stored.pool.rows) for part in regular))


def _bundled(runs: Sequence[Run], sizes: Sequence[Sizes], least: int) -> list[list[Any]]:
    """The references to the triplets of the runs, in bundles of at least `least` triplets, but for the last one."""
    bundles: list[list[Any]] = []
    filled = least
    for run, size in zip(runs, sizes, strict=True):
        if filled >= least:
            bundles.append([])
            filled = 0
        bundles[-1].append(run.triplets)
        filled += size.kept
    return bundles


def cut(bounds: np.ndarray, *runs: Triplets) -> list[Triplets]:
    """Divides the triplets of `runs` by their losses. A loss that equals a bound belongs to the range before it."""
    triplets = joined(runs)
    numbers = np.searchsorted(-bounds, -triplets.loss, side="left")
    return [triplets.take(np.flatnonzero(numbers == number)) for number in range(len(bounds) + 1)]


def sort(pool: Pool, top: int | None, *pieces: Triplets) -> list[Triplets]:
    """Sorts the triplets of all `pieces`, at most the `top` hardest ones."""
    return [hardest(joined(pieces), pool.id_ranks, top)]


def _regular(parts: Iterator[Triplets], kept: int) -> Iterator[Triplets]:
    """Yields the first `kept` triplets of `parts`, `ROWS` at a time."""
    held: list[Triplets] = []
    while kept:
        wanted = min(ROWS, kept)
        while sum(part.kept for part in held) < wanted:
            held.append(next(parts))
        whole = joined(held)
        yield whole.take(np.arange(wanted))
        held = [whole.take(np.arange(wanted, whole.kept))]
        kept -= wanted
