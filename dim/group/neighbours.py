"""The nearest other photos of each photo: found exactly or in an index, and kept from run to run.

A run finds lists for new photos, and adds new photos to the lists of the others. With exact search, the lists are those
of a run on all photos. With an index, an old photo learns of a new one only if the new one's list has it.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dim.app import tasks
from dim.app.progress import Progress
from dim.io import files, local_copies, tables
from dim.search import exact
from dim.search.best_rows import BestRows
from dim.search.database import Exact
from dim.search.exact import Part
from dim.search.read_index import SearchTarget

FILE = "neighbours.parquet"
_EMBEDDING = b"embedding"
_WINDOW = 2**15  # photos that are searched for at a time

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Neighbours:
    """The nearest other photos of each photo, best first: `rows`, int32 (N, k), and `scores`, float64 (N, k).

    If fewer than k are known, the remaining entries are −1 in the rows and −inf in the scores.
    """

    rows: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def edges(self, least: float, below: float = np.inf) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields, block by block, the photos and neighbours whose score is at least `least` and less than `below`."""
        for start in range(0, len(self), _WINDOW):
            scores = self.scores[start : start + _WINDOW]
            one, place = np.nonzero((scores >= least) & (scores < below))
            yield one + start, self.rows[one + start, place].astype(np.int64)


def nothing(size: int, count: int) -> Neighbours:
    """Lists of `size` photos in which no neighbour is known."""
    return Neighbours(np.full((size, count), -1, np.int32), np.full((size, count), -np.inf))


def fingerprints(database: Exact) -> np.ndarray:
    """A hash of each photo's descriptor, uint64 (N,), by which a later run sees whether the descriptor is the same."""
    parts = database.parts
    found = tasks.spread(
        _hashes,
        parts,
        workers=database.workers,
        stage="checking",
        size=lambda part: part.size,
        unit="images",
    )
    return np.concatenate(list(tasks.in_order(found)))


def _hashes(part: Part) -> np.ndarray:
    vectors = np.ascontiguousarray(part.load())
    hashes = b"".join(hashlib.blake2b(vector.data, digest_size=8).digest() for vector in vectors)
    return np.frombuffer(hashes, np.uint64)


@dataclass(frozen=True)
class Kept:
    """What is known from the run before: whether a photo is `known`, bool (N,), and its list if that is still `valid`.

    A list is valid if all photos on it are still there, with the same descriptors.
    """

    lists: Neighbours
    known: np.ndarray
    valid: np.ndarray


def unknown(size: int, count: int) -> Kept:
    """What is known of `size` photos, with lists of `count`, if no run was before."""
    return Kept(nothing(size, count), np.zeros(size, bool), np.zeros(size, bool))


def kept(folder: str, embedding: str, ids: pa.ChunkedArray, hashes: np.ndarray, count: int) -> Kept:
    """Reads the lists that a run before left in `folder`, for the photos `ids` (N,) with the fingerprints `hashes`."""
    before = unknown(len(ids), count)
    uri = files.join(folder, FILE)
    if not files.exists(uri):
        return before
    table = tables.read_parquet(uri)
    width = table.schema.field("rows").type.list_size
    if (table.schema.metadata or {}).get(_EMBEDDING) != embedding.encode() or width != count:
        return before
    place = pc.fill_null(pc.index_in(table["image_id"], ids), -1).to_numpy().astype(np.int64)
    same = (place >= 0) & (hashes[place] == table["fingerprint"].to_numpy())
    new_row = np.append(np.where(same, place, -2), -1)  # of each old row; −2 is gone, and the last stands for no row
    rows, scores = (_matrix(table[name], width) for name in ("rows", "scores"))
    mapped = new_row[rows]
    whole = same & (mapped != -2).all(axis=1)
    before.known[place[same]] = before.valid[place[whole]] = True
    before.lists.rows[place[whole]], before.lists.scores[place[whole]] = mapped[whole], scores[whole]
    return before


def write(uri: str, embedding: str, ids: pa.ChunkedArray, hashes: np.ndarray, lists: Neighbours) -> None:
    """Writes `lists` for the next run."""
    columns = {"image_id": ids, "fingerprint": pa.array(hashes)}
    for name, values in (("rows", lists.rows), ("scores", lists.scores)):
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), max(1, values.shape[1]))
    table = pa.table(columns).replace_schema_metadata({_EMBEDDING: embedding})
    with local_copies.path_to_write(uri) as path:
        pq.write_table(table, path, write_page_checksum=True, use_dictionary=False)


def _matrix(column: pa.ChunkedArray, width: int) -> np.ndarray:
    flat: np.ndarray = column.combine_chunks().flatten().to_numpy()
    return flat.reshape(-1, width)


def by_comparison(database: Exact, before: Kept) -> Neighbours:
    """Finds the lists of all photos exactly. Photos with a valid list are compared with new photos only."""
    lists, count = before.lists, before.lists.rows.shape[1]
    new = np.flatnonzero(~before.known)
    parts = list(_masked(database.parts, ~before.known))
    if len(new):
        log.info("%d photos are new or changed; %d are known", len(new), len(before.known) - len(new))
    progress = Progress("finding neighbours", len(lists))
    for start in range(0, len(lists), _WINDOW):
        own = np.arange(start, min(start + _WINDOW, len(lists)))
        searched = own[~before.valid[own]]
        if len(searched):
            rows, scores = database.nearest(database.take(searched), count + 1)
            lists.rows[searched], lists.scores[searched] = without_own(searched, rows, scores, count)
        extended = own[before.valid[own]]
        if len(extended) and len(new):
            found, scores = exact.nearest(
                database.take(extended), parts, database.tie_order[new], count, database.workers
            )
            best = BestRows(len(extended), count, database.tie_order)
            best.merge(0, lists.rows[extended], lists.scores[extended])
            best.merge(0, np.where(found >= 0, new[found], -1), scores)
            lists.rows[extended], lists.scores[extended] = best.rows, best.scores
        progress.add(len(own))
    return lists


def by_index(database: Exact, target: SearchTarget, ids: pa.ChunkedArray, before: Kept) -> Neighbours:
    """Finds the lists of new photos in an index, and adds these photos to the lists of their neighbours."""
    lists, count = before.lists, before.lists.rows.shape[1]
    row_of = pc.fill_null(pc.index_in(target.ids, ids), -1).to_numpy().astype(np.int64)
    best = BestRows(len(lists), count, database.tie_order)
    best.merge(0, lists.rows, lists.scores)
    new = np.flatnonzero(~before.valid)
    progress = Progress("finding neighbours", len(new))
    for start in range(0, len(new), _WINDOW):
        own = new[start : start + _WINDOW]
        found, found_scores = target.database.nearest(database.take(own), count + 1)
        rows = np.where(found >= 0, row_of[found], -1)
        rows, scores = without_own(own, rows, np.where(rows >= 0, found_scores, -np.inf), count)
        at, place = np.nonzero(rows >= 0)
        best.insert(own[at], rows[at, place], scores[at, place])
        one, other, score = rows[at, place], own[at], scores[at, place]
        mutual = (best.rows[one] == other[:, None]).any(axis=1) | ~before.valid[one]
        order = np.argsort(one[~mutual], kind="stable")
        best.insert(one[~mutual][order], other[~mutual][order], score[~mutual][order])
        progress.add(len(own))
    return Neighbours(best.rows.astype(np.int32), best.scores)


def without_own(own: np.ndarray, rows: np.ndarray, scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` entries of each list, without the photo itself and with empty entries last."""
    empty = (rows == own[:, None]) | (rows < 0)
    order = np.argsort(empty, axis=1, kind="stable")[:, :count]
    gone = np.take_along_axis(empty, order, axis=1)
    return (
        np.where(gone, -1, np.take_along_axis(rows, order, axis=1)),
        np.where(gone, -np.inf, np.take_along_axis(scores, order, axis=1)),
    )


def _masked(parts: Sequence[Part], mask: np.ndarray) -> Iterator[Part]:
    """Those rows of `parts` that `mask` (N,) marks, as parts of a smaller database."""
    start = 0
    for part in parts:
        chosen = mask[part.start : part.start + part.size]
        if chosen.any():
            yield replace(part, start=start, size=int(chosen.sum()), load=partial(_rows, part, chosen))
            start += int(chosen.sum())


def _rows(part: Part, chosen: np.ndarray) -> np.ndarray:
    rows: np.ndarray = part.load()[chosen]
    return rows
