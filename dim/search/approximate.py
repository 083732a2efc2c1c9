"""A database that FAISS searches: an index of one or several files, which any process of the cluster can open.

The files are searched in parallel, 1,024 queries at a time, and their lists are merged in the order (−score, image id).
If a row's score doesn't depend on the file that holds it, lists don't depend on the number of files. This holds for
inverted lists and codes, but not for graphs (HNSW), in which a search may miss rows.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np

from dim.app import tasks
from dim.errors import UserError
from dim.io import local_copies, seal
from dim.search import exact, faiss_transforms
from dim.search.best_rows import BestRows
from dim.search.exact import QUERIES
from dim.search.faiss_files import inverted_lists, matches, require_unchanged, set_parameters

LISTED = 1000  # most rows per query that `Approximate.scores` gives a score
_TIED = 4096  # most rows that are found beyond those asked for, because their scores equal the last one
_OPEN = 64  # most files that a process keeps open


@dataclass(frozen=True)
class IndexFile:
    """A file at `uri` with `rows` rows of an index, from row `start` of the index on.

    `size`, `sha256` and `time` (of the last change, in nanoseconds) are the file's. `parameters` are FAISS's search
    parameters. `allowed`, if given, has a bit for each row. A search finds only rows whose bit is set.
    """

    uri: str
    size: int | None
    sha256: str | None
    time: int
    start: int = 0
    rows: int = 0
    parameters: str | None = None
    allowed: np.ndarray | None = None

    def open(self) -> Any:
        """The index, which FAISS maps from the file as far as it can. Raises UserError if the file is another one."""
        return _opened(self.uri, self.size, self.sha256, self.time, self.parameters)

    def only(self, mask: np.ndarray) -> "IndexFile":
        """The same file, in which a search finds only the rows that `mask`, bool (rows of the whole index,), marks."""
        bits = np.packbits(mask[self.start : self.start + self.rows], bitorder="little")
        return replace(self, allowed=bits)

    @property
    def share(self) -> float:
        """The share of the rows that a search may find."""
        return 1.0 if self.allowed is None else int(np.bitwise_count(self.allowed).sum()) / self.rows

    def search(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the `count` best rows of each query, and more if their scores equal the last one.

        Returns rows, −1 for no row, and scores, both (Q, `count` or more). Raises UserError if FAISS can't search only
        some rows of this kind of index.
        """
        index = self.open()
        asked = np.ascontiguousarray(queries, np.float32)
        if isinstance(index, faiss.IndexPreTransform):
            asked, index = faiss_transforms.apply(index, asked), faiss.downcast_index(index.index)
        selector = None if self.allowed is None else faiss.IDSelectorBitmap(self.allowed)
        parameters = search_parameters(index, count, selector, self.share)
        # A graph or a refinement finds other rows if it is asked for more of them, so it is asked only for `count`.
        compares_all = isinstance(index, faiss.IndexIVF | faiss.IndexFlatCodes | faiss.IndexFastScan)
        most = min(count + _TIED if compares_all else count, self.rows)
        wanted = min(count + 1, most)
        scores, rows = index.search(asked, wanted, params=parameters)
        tied = np.arange(len(asked))
        while len(tied := tied[_ends_in_a_tie(scores[tied], rows[tied], count)]) and wanted < most:
            wanted = min(2 * wanted, most)
            wider = ((0, 0), (0, wanted - scores.shape[1]))
            scores, rows = np.pad(scores, wider, constant_values=-np.inf), np.pad(rows, wider, constant_values=-1)
            scores[tied], rows[tied] = index.search(asked[tied], wanted, params=parameters)
        return rows, np.where(rows >= 0, scores.astype(np.float64), -np.inf)


def _ends_in_a_tie(scores: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Whether a list may go on with rows that have the score of its row `count`."""
    last = min(count, scores.shape[1]) - 1
    tie: np.ndarray = (rows[:, -1] >= 0) & (scores[:, last] == scores[:, -1])
    return tie


@functools.lru_cache(maxsize=_OPEN)
def _opened(uri: str, size: int | None, sha256: str | None, time: int, parameters: str | None) -> Any:
    with local_copies.path_to_read(uri) as path:
        # FAISS doesn't check its input: a truncated or damaged file can crash this process or use up the memory.
        if not matches(path, {"bytes": size, "sha256": sha256}):
            raise seal.mismatch(uri, "index")
        index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
    require_unchanged(uri, time)  # of a large file, the content was not compared
    if parameters:
        set_parameters(index, parameters)
    return index


def search_parameters(index: Any, count: int, selector: Any = None, share: float = 1.0) -> Any:
    """The parameters with which FAISS searches `index` for `count` rows; None for its own.

    FAISS stops the search of an HNSW graph after efSearch candidates, 16 by default, and may then have found fewer rows
    than were asked for. If `selector` lets only a `share` of the rows be found, there must be as many more candidates.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        within = search_parameters(index.index, count, selector, share)
        return within and faiss.SearchParametersPreTransform(index_params=within)
    if isinstance(index, faiss.IndexRefine):
        within = search_parameters(index.base_index, math.ceil(count * index.k_factor), selector, share)
        return within and faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=within)
    if isinstance(index, faiss.IndexIVF):
        within = search_parameters(index.quantizer, index.nprobe)
        if selector is None and within is None:
            return None
        return faiss.SearchParametersIVF(
            sel=selector, nprobe=index.nprobe, max_codes=index.max_codes, quantizer_params=within
        )
    if isinstance(index, faiss.IndexHNSW):
        candidates = min(index.ntotal, math.ceil(max(index.hnsw.efSearch, count) / max(share, 1e-9)))
        return faiss.SearchParametersHNSW(
            sel=selector,
            efSearch=candidates,
            check_relative_distance=index.hnsw.check_relative_distance,
            bounded_queue=index.hnsw.search_bounded_queue,
        )
    return selector and faiss.SearchParameters(sel=selector)


@dataclass(frozen=True)
class Approximate:
    """A `Database` in the `parts` of an FAISS index. FAISS computes the scores, in float32 or from compressed codes.

    `chosen`, int64 (N,), are the rows of the index that are the rows of this database, ascending; None for all rows.
    """

    parts: Sequence[IndexFile]
    tie_order: np.ndarray
    chosen: np.ndarray | None = None

    def nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Database`. The search may find fewer than `count` rows even if the database has more."""
        best = BestRows(len(queries), count, self.tie_order)
        blocks = [slice(start, start + QUERIES) for start in range(0, len(queries), QUERIES)]
        units = [(part, block) for block in blocks for part in self.parts if part.share]
        threads = tasks.threads_of_a_call(len(units))
        for unit, (found, scores) in tasks.spread(_search, units, (queries, count, threads)):
            part, block = units[unit]
            best.merge(block.start, self._numbered(found, part), scores)
        return best.rows, best.scores

    def _numbered(self, found: np.ndarray, part: IndexFile) -> np.ndarray:
        """The rows of this database that the rows `found` of `part` are. −1 stays −1."""
        rows = found + part.start
        return np.where(found >= 0, rows if self.chosen is None else np.searchsorted(self.chosen, rows), -1)

    def scores(self, queries: np.ndarray) -> Iterator[np.ndarray]:
        """See `Database`. At most `LISTED` rows per query have a score other than −inf."""
        for start in range(0, len(queries), exact.QUERIES):
            block = queries[start : start + exact.QUERIES]
            for rows, scores in zip(*self.nearest(block, min(LISTED, len(self.tie_order))), strict=True):
                listed = np.full(len(self.tie_order), -np.inf)
                listed[rows[rows >= 0]] = scores[rows >= 0]
                yield listed

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Database`. The vectors are decoded from the index's codes. Raises UserError if that is impossible."""
        wanted = rows if self.chosen is None else self.chosen[rows]
        found = None
        for part in self.parts:
            here = np.flatnonzero((wanted >= part.start) & (wanted < part.start + part.rows))
            if len(here):
                vectors = _vectors(part.open(), wanted[here] - part.start)
                found = np.empty((len(rows), vectors.shape[1]), np.float32) if found is None else found
                found[here] = vectors
        return np.zeros((0, self.parts[0].open().d), np.float32) if found is None else found

    def with_random_access(self) -> "Approximate":
        """See `Database`."""
        return self


def _search(
    unit: tuple[IndexFile, slice], queries: np.ndarray, count: int, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    faiss.omp_set_num_threads(threads)
    part, block = unit
    return part.search(queries[block], count)


def _vectors(index: Any, rows: np.ndarray) -> np.ndarray:
    if (inverted := inverted_lists(index)) is not None:
        if isinstance(inverted, faiss.IndexIVFFastScan):
            raise UserError("an IVF index with fast-scan codes can't return vectors; build another for --expansion")
        inverted.make_direct_map()  # does nothing in later calls
    found: np.ndarray = index.reconstruct_batch(np.ascontiguousarray(rows, np.int64))
    return found
