"""Makes empty FAISS indexes from factory strings, estimates their size, and trains them.

A factory string is FAISS's name for a kind of index, such as IVF1024,PQ64. `train` fits transforms, centroids and
codes.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

import faiss
import numpy as np

from dim.errors import UserError
from dim.search import faiss_transforms
from dim.search.faiss_files import IDS_FILE, LARGEST, as_user_error, inverted_lists, set_parameters

log = logging.getLogger(__name__)
ROWS_A_LIST = 100  # training rows per inverted list; FAISS advises 39 or more and uses at most 256
LEAST_ROWS = 65536  # fewest training rows by default: 256 for each of the 256 codes of a product quantiser


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


def proposing_index(factory: str, parameters: str | None, dimension: int, seed: int) -> Any:
    """Makes the untrained index of `--candidates`, with the search parameters of `--candidate-parameters`.

    Raises UserError as `empty_index` does, or if the parameters can't be set.
    """
    index = empty_index(factory, dimension, seed, flag="--candidates")
    if parameters:
        set_parameters(index, parameters, "--candidate-parameters")
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


def training_rows(index: Any) -> int:
    """The number of rows that `index` is trained on by default."""
    inverted = inverted_lists(index)
    return max(LEAST_ROWS, ROWS_A_LIST * inverted.nlist if inverted is not None else 0)


def train(index: Any, sample: np.ndarray, what: str) -> None:
    """Trains `index` on `sample`, L2-normalised float32 (n, D), and logs a warning if FAISS advises more rows.

    Raises UserError if the index can't be trained. `what` is the flag with the factory string, for the message.
    """
    advised = max((each.min_points_per_centroid * centroids for each, centroids in _clusterings(index)), default=0)
    if len(sample) < advised:
        log.warning("%d rows are few to train this index; FAISS advises %d or more", len(sample), advised)
    with as_user_error(f"{what} can't be trained on {len(sample)} rows"):
        faiss_transforms.train(index, sample)
        index.train(sample)


def add(index: Any, blocks: Iterable[np.ndarray], what: str) -> None:
    """Adds `blocks` (n, D) to `index`. Raises UserError if it takes no rows. `what` is as in `train`."""
    with as_user_error(f"{what} takes no rows"):
        for block in blocks:
            index.add(block)
