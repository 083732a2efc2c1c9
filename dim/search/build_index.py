"""What index.py does: builds an FAISS index from a folder of descriptors.

`empty_index` makes an index from a factory string, FAISS's name for a kind of index. `train` fits the transforms,
centroids and codes. `build` adds the rows block by block and writes the output folder. `read_index` reads the folder.
"""

import logging
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from dim.app import output_folder
from dim.app.config import MOST_SEED, require_at_least
from dim.app.progress import with_progress
from dim.errors import UserError
from dim.io import files, local_copies, seal, tables
from dim.search import descriptor_folder, exact, faiss_transforms
from dim.search.config import IndexConfig
from dim.search.database import Exact
from dim.search.descriptor_folder import DescriptorFolder
from dim.search.read_index import FILE, IDS_FILE, LARGEST, SEAL_FILE, as_user_error, facts_of, inverted_lists

log = logging.getLogger(__name__)
ROWS_A_LIST = 100  # training rows per inverted list; FAISS advises 39 or more and uses at most 256
LEAST_ROWS = 65536  # fewest training rows by default: 256 for each of the 256 codes of a product quantiser


def build(config: IndexConfig) -> dict[str, Any]:
    """Builds the index of `config.descriptors`, writes it to the folder `config.out`, and returns the job's result.

    Raises UserError if a flag is out of range, if the folder has no descriptors, or if FAISS can't build this index.
    """
    if not 0 <= config.seed <= MOST_SEED:
        raise UserError(f"--seed must be from 0 to {MOST_SEED}, not {config.seed}")
    require_at_least(config, {"train_rows": 1})
    rows = descriptor_folder.read(config.descriptors, config.whitening, hashed=True)
    dimension = next(iter(rows)).shape[1]
    index = empty_index(config.factory, dimension, config.seed)
    estimate = estimated_bytes(index, len(rows))
    place = "written straight to disk" if isinstance(index, faiss.IndexFlat) else "held in memory while it is built"
    size = f"about {estimate / 1e6:.1f} MB, {estimate // len(rows)} bytes a row"
    log.info("%s of %d rows of %d values: %s, to be %s", config.factory, len(rows), dimension, size, place)
    trained_on = 0 if index.is_trained else _train_on_sample(index, rows, config)
    inputs = {"descriptors": config.descriptors, "whitening": config.whitening}
    with output_folder.opened(config.out, "index", config, inputs, rows.embedding.as_json()) as out:
        with local_copies.path_to_write(out.path(FILE)) as path:
            _write(index, rows, path, config.factory)
            facts = facts_of(path)
        tables.write(out.path(IDS_FILE), pa.table({"image_id": rows.ids}))
        sealed = seal.create(config.out, [IDS_FILE], {FILE: {**facts, "rows": len(rows)}})
        files.write_json(out.path(SEAL_FILE), {seal.FILES: sealed})
        counts = {"rows": len(rows), "errors": len(rows.errors), "dimension": dimension, "trained_on": trained_on}
        bytes_per_row = round(facts["bytes"] / len(rows), 1)
        return out.finish({"factory": config.factory, **counts, **facts, "bytes_per_row": bytes_per_row}, sealed)


def empty_index(factory: str, dimension: int, seed: int, flag: str = "--factory") -> Any:
    """Makes an untrained FAISS index that compares vectors of `dimension` values by inner product.

    `factory` is FAISS's index_factory string, the value of the flag `flag`. `seed` is the seed of the clusterings that
    training runs. Raises UserError if FAISS can't make this index, or if the scores of the index are not cosines.
    """
    what = f"{flag} {factory!r} is not an FAISS index for {dimension} values, such as Flat or IVF1024,PQ64"
    _require_sane(factory, what)
    with as_user_error(what):
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    if isinstance(index, faiss.IndexIDMap):
        raise UserError(f"{flag} {factory!r}: leave IDMap out, {IDS_FILE} has the ids")
    if objection := faiss_transforms.objection(index):
        raise UserError(f"{flag} {factory!r}: {objection}")
    if (inverted := inverted_lists(index)) is not None:
        inverted.nprobe = round(inverted.nlist**0.5)  # lists to search; the default of FAISS is 1
    for clustering, _ in _clusterings(index):
        clustering.seed = seed
    return index


def _require_sane(factory: str, what: str) -> None:
    # FAISS ignores all text after a NUL character. If a number is 0 or overflows, the index crashes later.
    if not (factory.isascii() and factory.isprintable()):
        raise UserError(f"{what}: it has characters that are not printable ASCII")
    for number in re.findall("[0-9]+", factory):
        if len(number) > len(str(LARGEST)) or not 1 <= int(number) <= LARGEST:
            raise UserError(f"{what}: {number} is not from 1 to {LARGEST}")


def _clusterings(index: Any) -> Iterator[tuple[Any, int]]:
    """Yields each k-means clustering that training runs, and the number of centroids of the clustering."""
    for stage in faiss_transforms.stages(index):
        for owner, centroids in ((stage, "nlist"), (getattr(stage, "pq", None), "ksub")):
            if (clustering := getattr(owner, "cp", None)) is not None:
                yield clustering, getattr(owner, centroids)


def estimated_bytes(index: Any, rows: int) -> int:
    """Estimates the size in bytes of `index` with `rows` rows."""
    inverted = inverted_lists(index)
    fixed = 4 * inverted.d * inverted.nlist if inverted is not None else 0
    return fixed + rows * _row_bytes(index)


def _row_bytes(index: Any) -> int:
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return _row_bytes(index.index)
    if isinstance(index, faiss.IndexRefine):
        return _row_bytes(index.base_index) + _row_bytes(index.refine_index)
    if isinstance(index, faiss.IndexHNSW):
        links = int(index.hnsw.nb_neighbors(0))
        return _row_bytes(index.storage) + 4 * links + 16  # 16: links on higher levels, their offset, the level
    if isinstance(index, faiss.IndexIVF):
        return int(index.code_size) + 8
    return int(index.sa_code_size()) if isinstance(index, faiss.IndexFlatCodes) else 4 * index.d


def _train_on_sample(index: Any, rows: DescriptorFolder, config: IndexConfig) -> int:
    """Trains `index` on randomly drawn rows, and returns their number. The draw doesn't depend on the order of rows."""
    count = min(len(rows), config.train_rows or training_rows(index))
    log.info("training on %d of %d rows, drawn by seed %d", count, len(rows), config.seed)
    tie_order = exact.tie_order_of(rows.ids)
    drawn = np.sort(np.random.default_rng(config.seed).choice(len(rows), count, replace=False))
    sample = Exact(rows.parts, tie_order).take(np.argsort(tie_order)[drawn])
    with as_user_error(f"--factory {config.factory!r} can't be trained on {count} rows"):
        train(index, sample)
    return count


def training_rows(index: Any) -> int:
    """The number of rows that `index` is trained on by default."""
    inverted = inverted_lists(index)
    return max(LEAST_ROWS, ROWS_A_LIST * inverted.nlist if inverted is not None else 0)


def train(index: Any, sample: np.ndarray) -> None:
    """Trains `index` on `sample`, L2-normalised float32 (n, D), and logs a warning if FAISS advises more rows."""
    advised = max((each.min_points_per_centroid * centroids for each, centroids in _clusterings(index)), default=0)
    if len(sample) < advised:
        log.warning("%d rows are few to train this index; FAISS advises %d or more", len(sample), advised)
    faiss_transforms.train(index, sample)
    index.train(sample)


def _write(index: Any, rows: DescriptorFolder, path: str, factory: str) -> None:
    blocks = with_progress(rows, len, "indexing", len(rows), "rows")
    if isinstance(index, faiss.IndexFlat):
        _write_flat(path, index.d, len(rows), blocks)
        return
    with as_user_error(f"--factory {factory!r} takes no rows"):
        for block in blocks:
            index.add(block)
    if index.ntotal != len(rows):
        raise RuntimeError(f"the index has {index.ntotal} rows, not {len(rows)}")
    faiss.write_index(index, path)


def _write_flat(path: str, dimension: int, rows: int, blocks: Iterable[np.ndarray]) -> None:
    """Writes `blocks` (n, D) as a flat index to the file `path`, block by block.

    The file begins with FAISS's header of an empty index, but with the numbers of rows and values. The values follow.
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
        raise RuntimeError(f"{abs(rows)} descriptors too {'few' if rows > 0 else 'many'} were read for the index")
