"""Brings descriptors into the order of the pool: from the parts of a store or of a training run into its blocks.

This is a shuffle in two stages. The tasks of the first stage each load some parts and divide their rows by the blocks
that they belong to. Those of the second stage put the pieces together. No process holds more than its share of rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dim.mine.pool import Column, Pool, is_unit, not_normalised, off_unit, tolerance
from dim.mine.remote import Remote
from dim.search.exact import Part

_MOST = 65_536  # rows that a task shuffles at a time; with fewer, more tasks can share the work
# A piece has rows² / N rows. Ray keeps results below 100 kB in the memory of the driver, so a piece should be larger.
_PIECE = 2**17  # bytes, of float16


@dataclass(frozen=True)
class Checked:
    """What a task found about its blocks: the number of rows with a wrong norm, the first one, and its norm.

    `worst` is the largest `off_unit`. `first` is a position in the caller's arrays.
    """

    worst: float
    wrong: int
    first: int
    norm: float


@dataclass(frozen=True)
class StoredPool:
    """A pool whose blocks are in Ray's object store.

    `blocks` are references to them, and `reference` is one to the pool itself. A descriptor has `dimension` values. A
    task may hold `share` bytes of data.
    """

    pool: Pool
    reference: Any
    blocks: Sequence[Any]
    dimension: int
    share: int

    def of(self, *spans: range) -> dict[int, Any]:
        """References to the blocks in `spans`, by their numbers."""
        return {i: self.blocks[i] for span in spans for i in span}


def stored(
    remote: Remote, parts: Sequence[Part], pool: Pool, *, share: int, where: str, image_ids: Column
) -> StoredPool:
    """Loads `parts`, which hold the rows of the caller's arrays, and makes the pool's blocks.

    Args:
        remote: Runs the tasks.
        parts: The descriptors, in the order of the caller's arrays.
        pool: The pool, whose `tolerance` is not yet known.
        share: The bytes that a task may hold.
        where: What the rows are, for messages.
        image_ids: The ids, in the order of the caller's arrays.

    Returns:
        The pool with its tolerance and its blocks.

    Raises:
        UserError: A labelled row is not L2-normalised.
    """
    dimension = parts[0].load().shape[1]
    size = sum(part.size for part in parts)
    rows = max(pool.block_rows, math.isqrt(size * _PIECE // (2 * dimension)), min(_MOST, share // (16 * dimension)))
    places = np.full(size, -1, np.int64)
    places[pool.rows] = np.arange(len(pool))
    step = max(1, rows // pool.block_rows)
    groups = [range(i, min(i + step, pool.block_count)) for i in range(0, pool.block_count, step)]
    bounds = np.array([group.start * pool.block_rows for group in groups[1:]], np.int64)
    pieces = []
    for some in _batched(parts, rows):
        own = [places[part.start : part.start + part.size] for part in some]
        pieces.append(remote.call(divided, some, own, bounds, returns=len(groups)))
    blocks, reports = [], []
    for group in groups:
        span = slice(pool.span(group[0]).start, pool.span(group[-1]).stop)
        own_pieces = [each.pop(0) for each in pieces]  # Ray frees them as soon as they are joined
        report, *made = remote.call(joined, pool.block_rows, pool.rows[span], *own_pieces, returns=len(group) + 1)
        blocks += made
        reports.append(report)
    checked = [remote.get(report) for report in reports]
    _require_normalised(checked, where, image_ids)
    pool = replace(pool, tolerance=tolerance(max(each.worst for each in checked), dimension))
    return StoredPool(pool, remote.put(pool), blocks, dimension, share)


def _batched(parts: Sequence[Part], rows: int) -> list[list[Part]]:
    batches: list[list[Part]] = [[]]
    for part in parts:
        if batches[-1] and sum(other.size for other in batches[-1]) + part.size > rows:
            batches.append([])
        batches[-1].append(part)
    return batches


def divided(
    parts: Sequence[Part], places: Sequence[np.ndarray], bounds: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Loads `parts` and divides their rows at `bounds`, places in the pool. Each piece is its places and its rows."""
    used = [own >= 0 for own in places]
    all_places = np.concatenate([own[kept] for own, kept in zip(places, used, strict=True)])
    vectors = np.concatenate([part.load()[kept] for part, kept in zip(parts, used, strict=True)])
    order = np.argsort(all_places)
    all_places, vectors = all_places[order], compact(vectors[order])
    cuts = np.searchsorted(all_places, bounds)
    return list(zip(np.split(all_places, cuts), np.split(vectors, cuts), strict=True))


def compact(vectors: np.ndarray) -> np.ndarray:
    """`vectors` as float16 if each value is one, as those of a store of float16; else unchanged."""
    with np.errstate(over="ignore"):
        half = vectors.astype(np.float16)
    return half if (half == vectors).all() else vectors


def joined(block_rows: int, rows: np.ndarray, *pieces: tuple[np.ndarray, np.ndarray]) -> list[Any]:
    """Puts the pieces of some blocks together. Returns what was checked, and the blocks.

    `rows` are the positions of the blocks' rows in the caller's arrays.
    """
    vectors = np.concatenate([piece for _, piece in pieces])[np.argsort(np.concatenate([own for own, _ in pieces]))]
    off = off_unit(vectors)
    wrong = np.flatnonzero(~is_unit(off))
    first = wrong[np.argmin(rows[wrong])] if len(wrong) else 0
    norm = float(np.linalg.norm(vectors[first].astype(np.float64)))
    checked = Checked(float(off.max()), len(wrong), int(rows[first]), norm)
    return [checked, *np.split(vectors, range(block_rows, len(vectors), block_rows))]


def _require_normalised(checked: Sequence[Checked], where: str, image_ids: Column) -> None:
    if wrong := [each for each in checked if each.wrong]:
        first = min(wrong, key=lambda each: each.first)
        raise not_normalised(where, sum(each.wrong for each in wrong), str(image_ids[first.first]), first.norm)
