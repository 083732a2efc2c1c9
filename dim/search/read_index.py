"""Makes a database to search from the folder of the flag `--index`, which has an index or descriptors.

Descriptors and flat FAISS indexes are searched exactly, from disk. Any other index becomes an `Approximate` database,
which FAISS searches. The index file is checked before FAISS reads it.
"""

import contextlib
import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from dim.app import output_folder
from dim.data import manifest
from dim.errors import UserError
from dim.extract import identity
from dim.extract.embedding import Embedding
from dim.io import files, local_copies, seal, tables
from dim.io.seal import Facts
from dim.search import descriptor_folder, exact, faiss_transforms
from dim.search.database import Database, Exact, from_array

FILE, IDS_FILE, SEAL_FILE = "knn.index", "ids.parquet", "index.json"
MOST_HASHED = 2**32  # bytes that are hashed in about four seconds; of a larger file, only the size is checked
LARGEST = 2**20  # largest number in a factory string or parameter; FAISS advises no more lists for 1e9 rows
LISTED = 1000  # most rows per query that `Approximate.scores` gives a score


@dataclass(frozen=True)
class SearchTarget:
    """A database to search, the image ids of the rows, strings (N,), and the embedding that made the rows."""

    database: Database
    ids: pa.Array
    embedding: Embedding


def read(folder: str, whitening: str | None, parameters: str | None) -> SearchTarget:
    """Reads an index or a folder of descriptors.

    Descriptors that are not whitened yet are whitened with the file `whitening`. `parameters` are FAISS's search
    parameters, such as "nprobe=16".

    Raises:
        UserError: The folder has neither an index nor descriptors, the index is unfinished or damaged, `parameters`
            can't be set, or the whitening doesn't fit the descriptors.
    """
    record = output_folder.record_of(folder)
    if record is None or not (record["job"] == "index" or identity.holds_descriptors(record)):
        raise UserError(f"--index {folder!r} holds neither an index nor descriptors; make it with index.py")
    if identity.holds_descriptors(record):
        if parameters:
            raise UserError(f"--parameters {parameters!r} are for an index; {folder!r} is a folder of descriptors")
        rows = descriptor_folder.read(folder, whitening)
        return SearchTarget(Exact(rows.parts, exact.tie_order_of(rows.ids)), rows.ids, rows.embedding)
    embedding = identity.of_folder(folder)
    known = record["counts"] if isinstance(record.get("counts"), dict) else {}
    # Indexes that are older than seals hold the facts about FAISS's file only in the counts of the record.
    facts = {IDS_FILE: {}, **(seal.from_record(record, folder) or {}), FILE: known}
    ids = _read_ids(files.join(folder, IDS_FILE), facts[IDS_FILE])
    seal.require_complete(folder, facts, "index")
    if SEAL_FILE in facts:
        seal.require_content(files.join(folder, SEAL_FILE), facts[SEAL_FILE], "index")
    with local_copies.path_to_read(files.join(folder, FILE)) as path:
        return SearchTarget(read_file(path, exact.tie_order_of(ids), parameters, known), ids, embedding)


def _read_ids(uri: str, facts: Facts) -> pa.Array:
    table = tables.read(uri)
    if "image_id" not in table.column_names or table["image_id"].null_count:
        raise UserError(f"{uri!r} has no image_id for each row; make it again with index.py")
    ids = manifest.text_column(uri, table, "image_id").combine_chunks()
    seal.require_content(uri, facts, "index")
    return ids


def read_file(path: str, tie_order: np.ndarray, parameters: str | None, record: Facts) -> Database:
    """Reads the FAISS index in the local file `path`. A flat index becomes an exact database, mapped from the file.

    `record` holds the size, checksum and dimension that index.py recorded. Raises UserError if the index doesn't match
    `record`, if its number of rows isn't that of `tie_order`, if `parameters` can't be set, if the scores are not
    cosines, or if the file changes meanwhile.
    """
    again = "make it again with index.py"
    before = Path(path).stat()
    # FAISS doesn't check its input: a truncated or damaged file can crash this process or use up the memory.
    if not _matches(path, record):
        raise seal.mismatch(path, "index")
    with as_user_error(f"{path!r} is not an FAISS index; {again}"):
        index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
    if (index.ntotal, index.d) != (len(tie_order), record.get("dimension")):
        raise UserError(
            f"{path!r} has {index.ntotal} rows of {index.d} values, its {IDS_FILE} {len(tie_order)} and its "
            f"{output_folder.RECORD} {record.get('dimension')!r}; {again}"
        )
    if objection := faiss_transforms.objection(index):  # earlier versions of dim could build such an index
        raise UserError(f"{path!r}: {objection}; {again}")
    if parameters:
        set_parameters(index, parameters)
    if isinstance(index, faiss.IndexFlatIP):
        offset = before.st_size - 4 * index.ntotal * index.d
        vectors = np.memmap(path, "<f4", "r", offset, (index.ntotal, index.d))
    now = Path(path).stat()
    if (before.st_ino, before.st_mtime_ns) != (now.st_ino, now.st_mtime_ns):
        raise UserError(f"{path!r} changed while this job read it; run the same command again")
    return from_array(vectors, tie_order) if isinstance(index, faiss.IndexFlatIP) else Approximate(index, tie_order)


def facts_of(path: str) -> Facts:
    """The size and checksum of the index file `path`, for the seal of the index."""
    with open(path, "rb") as file:
        return {"bytes": Path(path).stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _matches(path: str, record: Facts) -> bool:
    if (size := Path(path).stat().st_size) > MOST_HASHED:
        return bool(size == record.get("bytes"))
    return all(record.get(name) == value for name, value in facts_of(path).items())


def set_parameters(index: Any, parameters: str, flag: str = "--parameters") -> None:
    """Sets FAISS's search parameters on `index`. If that fails, raises a UserError that names `flag`."""
    what = f"{flag} {parameters!r} can't be set on this index"
    # FAISS casts values to integers without a check. A bad value fails only later, in the middle of a search.
    for value in re.findall(r"=\s*([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)", parameters):
        if not 0 <= float(value) <= LARGEST:
            raise UserError(f"{what}: {value} is not from 0 to {LARGEST}")
    with as_user_error(what):
        faiss.ParameterSpace().set_index_parameters(index, parameters)
    if (inverted := inverted_lists(index)) is not None and inverted.nprobe < 1:
        raise UserError(f"{what}: nprobe must be at least 1")


def inverted_lists(index: Any) -> Any:
    """The IndexIVF (an index of inverted lists) within `index`, or None if there is none."""
    inverted = faiss.try_extract_index_ivf(index)
    return None if inverted is None else faiss.downcast_index(inverted)


@contextlib.contextmanager
def as_user_error(what: str) -> Iterator[None]:
    """Turns FAISS's RuntimeError and MemoryError into a UserError. Its message is one line that begins with `what`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = " ".join(re.split(r"\.(?:cpp|h):\d+: |failed: ", str(error))[-1].split())
        raise UserError(f"{what}: {reason}") from error


@dataclass(frozen=True)
class Approximate:
    """A `Database` that an FAISS `index` searches. FAISS computes the scores, in float32 or from compressed codes."""

    index: Any
    tie_order: np.ndarray

    def nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Database`. The search may find fewer than `count` rows even if the database has more."""
        deepen(self.index, count)
        found, rows = self.index.search(np.ascontiguousarray(queries, np.float32), count)
        scores = np.where(rows >= 0, found.astype(np.float64), -np.inf)
        order = np.lexsort((self.tie_order[rows], -scores), axis=1)
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

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
        if (inverted := inverted_lists(self.index)) is not None:
            if isinstance(inverted, faiss.IndexIVFFastScan):
                raise UserError("an IVF index with fast-scan codes can't return vectors; build another for --expansion")
            inverted.make_direct_map()  # does nothing in later calls
        found: np.ndarray = self.index.reconstruct_batch(np.ascontiguousarray(rows, np.int64))
        return found

    def with_random_access(self) -> "Approximate":
        """See `Database`."""
        return self


def deepen(index: Any, count: int) -> None:
    """Makes the search of each HNSW graph within `index` long enough to find `count` rows.

    FAISS stops after efSearch candidates, 16 by default, and may then have found fewer rows.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        deepen(index.index, count)
    elif isinstance(index, faiss.IndexRefine):
        deepen(index.base_index, math.ceil(count * index.k_factor))
    elif isinstance(index, faiss.IndexIVF):
        deepen(index.quantizer, index.nprobe)
    elif isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = max(index.hnsw.efSearch, count)
