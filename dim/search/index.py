"""FAISS indexes, by `index_factory` string: made from descriptors block by block, read, and how large they are.

Search through an FAISS index that approximates.
"""

import contextlib
import hashlib
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from dim.app import output
from dim.errors import UserError
from dim.io import seal
from dim.io.seal import Facts
from dim.search import faiss_transforms
from dim.search.database import Database, from_array
from dim.search.exact import QUERIES

FILE, IDS_FILE, SEAL_FILE = "knn.index", "ids.parquet", "index.json"
ROWS_A_LIST = 100  # to train an IVF; FAISS wants 39 or more and uses 256 or fewer
LEAST_ROWS = 65536  # 256 for each of the 256 codes of a product quantiser
MOST_HASHED = 2**32  # bytes, some four seconds; of a larger file, much of which may never be read, the size has to do
LARGEST = 2**20  # number in a factory string: more lists than FAISS's guidelines have for 1e9 rows


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turns FAISS's RuntimeError and MemoryError into a UserError of one line that begins with `what`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = " ".join(re.split(r"\.(?:cpp|h):\d+: |failed: ", str(error))[-1].split())
        raise UserError(f"{what}: {reason}") from error


def made(factory: str, dimension: int, seed: int, flag: str = "--factory") -> Any:
    """An empty index by inner product. Raises UserError, naming the `flag` of the factory string, where FAISS has no
    such index for this dimension, or its scores would be no cosines.
    """
    what = f"{flag} {factory!r} is no FAISS index for {dimension} values, such as Flat or IVF1024,PQ64"
    _require_sane(factory, what)
    with refusals(what):
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    if isinstance(index, faiss.IndexIDMap):
        raise UserError(f"{flag} {factory!r}: leave IDMap out, {IDS_FILE} has the ids")
    if objection := faiss_transforms.objection(index):
        raise UserError(f"{flag} {factory!r}: {objection}")
    inverted = lists(index)
    if inverted is not None:
        inverted.nprobe = round(inverted.nlist**0.5)  # FAISS looks into one list only
    for part in faiss_transforms.stages(index):
        for clustered in (part, getattr(part, "pq", None)):
            if (clustering := getattr(clustered, "cp", None)) is not None:
                clustering.seed = seed
    return index


def _require_sane(factory: str, what: str) -> None:
    # FAISS reads as far as a NUL, and makes an index that crashes later of a 0 or of what overflows its integers.
    if not (factory.isascii() and factory.isprintable()):
        raise UserError(f"{what}: it has more than letters, digits and signs")
    for number in re.findall("[0-9]+", factory):
        if len(number) > len(str(LARGEST)) or not 1 <= int(number) <= LARGEST:
            raise UserError(f"{what}: {number} is not from 1 to {LARGEST}")


def lists(index: Any) -> Any:
    """The inverted file within `index`, None where there is none."""
    inverted = faiss.try_extract_index_ivf(index)
    return None if inverted is None else faiss.downcast_index(inverted)


def _core(index: Any) -> Any:
    """What `index` is behind a transform of its vectors."""
    index = faiss.downcast_index(index)
    return _core(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def training_rows(index: Any) -> int:
    """How many rows to train `index` with, where nothing else is asked."""
    inverted = lists(index)
    return max(LEAST_ROWS, ROWS_A_LIST * inverted.nlist if inverted is not None else 0)


def size(index: Any, rows: int) -> int:
    """About how many bytes `index` will need for `rows` rows."""
    inverted = lists(index)
    fixed = 4 * inverted.d * inverted.nlist if inverted is not None else 0
    return fixed + rows * _row_bytes(_core(index))


def _row_bytes(index: Any) -> int:
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return _row_bytes(index.base_index) + _row_bytes(index.refine_index)
    if isinstance(index, faiss.IndexHNSW):
        links = int(index.hnsw.nb_neighbors(0))
        return _row_bytes(index.storage) + 4 * links + 16  # links of higher levels, where the links start, the level
    if isinstance(index, faiss.IndexIVF):
        return int(index.code_size) + 8
    return int(index.sa_code_size()) if isinstance(index, faiss.IndexFlatCodes) else 4 * index.d


def write_flat(path: str, dimension: int, rows: int, blocks: Iterable[np.ndarray]) -> None:
    """Writes the file of a flat index of `rows` rows from `blocks` (n, D), of which one at a time is in memory.

    It is FAISS's header of an empty index, with the number of rows and of values filled in, and then the values.
    Raises RuntimeError where the blocks don't have these rows.
    """
    header = bytearray(faiss.serialize_index(faiss.IndexFlatIP(dimension)))
    struct.pack_into("<q", header, 8, rows)
    struct.pack_into("<q", header, len(header) - 8, rows * dimension)
    with open(path, "wb") as file:
        file.write(header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, "<f4").data)
            rows -= len(block)
    if rows:
        raise RuntimeError(f"the blocks of this index have {-rows:+d} rows of what was announced")


def sealed(path: str) -> Facts:
    """What the seal of an index says of its file, at `path`, for `read` to know it by."""
    with open(path, "rb") as file:
        return {"bytes": Path(path).stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _is_that_of(record: Facts, path: str) -> bool:
    if (size := Path(path).stat().st_size) > MOST_HASHED:
        return bool(size == record.get("bytes"))
    return all(record.get(name) == value for name, value in sealed(path).items())


def set_parameters(index: Any, parameters: str, flag: str = "--parameters") -> None:
    """Sets FAISS's search parameters. Raises UserError, naming the `flag`, where they are none of this index's."""
    what = f"{flag} {parameters!r} are none of this index's"
    # FAISS casts what it reads to whole numbers, and complains of what comes out in the midst of a search.
    for value in re.findall(r"=\s*([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)", parameters):
        if not 0 <= float(value) <= LARGEST:
            raise UserError(f"{what}: {value} is not from 0 to {LARGEST}")
    with refusals(what):
        faiss.ParameterSpace().set_index_parameters(index, parameters)
    if (inverted := lists(index)) is not None and inverted.nprobe < 1:
        raise UserError(f"{what}: nprobe must be at least 1")


def read(path: str, place: np.ndarray, parameters: str | None, record: Facts) -> Database:
    """The index in the file at `path`: a flat one is searched exactly, its vectors mapped to memory.

    `parameters` are FAISS's, such as "nprobe=16"; `record` is what the job that built it said. Raises UserError where
    the parameters are none of this index's, the file is not the one of the record and of as many rows as `place`, or
    its scores are not cosines.
    """
    again = "make it again with index.py"
    before = Path(path).stat()
    # FAISS trusts what it reads: a file that was cut off or damaged would crash this process, or take all its memory.
    if not _is_that_of(record, path):
        raise seal.mismatch(path, "index")
    with refusals(f"{path!r} is no FAISS index; {again}"):
        index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
    if (index.ntotal, index.d) != (len(place), record.get("dimension")):
        raise UserError(
            f"{path!r} has {index.ntotal} rows of {index.d} values, its {IDS_FILE} {len(place)} and its "
            f"{output.RECORD} {record.get('dimension')!r}; {again}"
        )
    if objection := faiss_transforms.objection(index):  # an earlier dim made such ones
        raise UserError(f"{path!r}: {objection}; {again}")
    if parameters:
        set_parameters(index, parameters)
    if isinstance(index, faiss.IndexFlatIP):
        offset = before.st_size - 4 * index.ntotal * index.d
        vectors = np.memmap(path, "<f4", "r", offset, (index.ntotal, index.d))
    now = Path(path).stat()
    if (before.st_ino, before.st_mtime_ns) != (now.st_ino, now.st_mtime_ns):
        raise UserError(f"{path!r} changed while this job read it; run the same command again")
    return from_array(vectors, place) if isinstance(index, faiss.IndexFlatIP) else Approximate(index, place)


LISTED = 1000  # rows of a list that can be re-ranked


@dataclass(frozen=True)
class Approximate:
    """A `Database`, as in `dim.search.database`. Scores are what the index computes, in float32 or from codes."""

    index: Any
    place: np.ndarray

    def nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Database`. Rows are −1, and scores −inf, where the index finds fewer."""
        faiss_transforms.deepen(self.index, count)
        found, rows = self.index.search(np.ascontiguousarray(queries, np.float32), count)
        scores = np.where(rows >= 0, found.astype(np.float64), -np.inf)
        order = np.lexsort((self.place[rows], -scores), axis=1)
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def scores(self, queries: np.ndarray) -> Iterator[np.ndarray]:
        """See `Database`. A query's list has at most `LISTED` rows."""
        for start in range(0, len(queries), QUERIES):
            block = queries[start : start + QUERIES]
            for rows, scores in zip(*self.nearest(block, min(LISTED, len(self.place))), strict=True):
                listed = np.full(len(self.place), -np.inf)
                listed[rows[rows >= 0]] = scores[rows >= 0]
                yield listed

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Database`. Vectors are as the index's codes have them. Raises UserError where these can't be decoded."""
        inverted = faiss.try_extract_index_ivf(self.index)
        if inverted is not None:
            if isinstance(faiss.downcast_index(inverted), faiss.IndexIVFFastScan):
                raise UserError("an IVF index of fast-scan codes gives no vectors back; for --expansion, build another")
            inverted.make_direct_map()  # which does nothing the second time
        found: np.ndarray = self.index.reconstruct_batch(np.ascontiguousarray(rows, np.int64))
        return found

    def held(self) -> "Approximate":
        """See `Database`."""
        return self
