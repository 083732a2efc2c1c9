"""Reads a folder of descriptors as rows to search.

`read` reads only the ids and errors into memory. The vectors of a part are read, and whitened, when the part is loaded.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.app import progress
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.extract import descriptors, identity, store
from dim.extract.embedding import Embedding, from_json
from dim.extract.finished_shards import Shard
from dim.io import files
from dim.model import whitening
from dim.model.whitening import Whitening
from dim.search.database import prefetched
from dim.search.exact import Part

LONGEST = 1.01  # largest norm of a descriptor; the norm is 1 before the descriptor is rounded to float16 or bfloat16


@dataclass(frozen=True)
class DescriptorFolder:
    """The photos that have a descriptor in `folder`, in the order of the shards.

    `ids` are strings (N,), and each of the `parts` loads the descriptors of one shard, in any process of the cluster.
    `shards` are the shards of the parts.
    `errors` maps the id of each photo that could not be decoded to the reason. `embedding` includes the whitening that
    is applied. `rows`, int64 (N,), are the positions of the photos in the manifest that was given to `read`, if any.
    """

    folder: str
    ids: pa.ChunkedArray
    errors: dict[str, str]
    embedding: Embedding
    parts: list[Part]
    shards: list[Shard]
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the descriptors in blocks (n, D), float32, while threads load the next blocks."""
        return prefetched(self.parts)


def read(
    folder: str, whitening_file: str | None = None, chosen: Manifest | None = None, *, hashed: bool = False
) -> DescriptorFolder:
    """Reads a folder that extract.py made: all images, or only the images of the manifest `chosen`.

    The whitening is applied unless the descriptors are whitened already. If `hashed` is true, the checksum of each
    shard is verified when the vectors of the shard are loaded.

    Raises:
        UserError: The folder has no descriptors, no image could be decoded, an image is in the folder twice, an image
            of `chosen` is not in the folder, or the whitening doesn't fit the descriptors.
    """
    embedding = identity.of_folder(folder)
    applied = None
    if whitening_file and not embedding.whitening:
        embedding, applied = load_whitening(whitening_file, embedding, folder)
    ids: list[pa.ChunkedArray] = []
    errors: dict[str, str] = {}
    parts: list[Part] = []
    shards: list[Shard] = []
    wanted = None if chosen is None else chosen.table["image_id"].combine_chunks()
    start = dimension = 0
    with progress.step(f"reading {folder!r}"):
        for shard, table in store.read_shards(folder, ["image_id", "status", "error"]):
            asked = pa.scalar(True) if wanted is None else pc.is_in(table["image_id"], wanted)
            kept = pc.and_(pc.equal(table["status"], store.OK), asked)
            broken = table.filter(pc.and_(pc.not_equal(table["status"], store.OK), asked))
            errors |= zip(broken["image_id"].to_pylist(), broken["error"].to_pylist(), strict=True)
            if size := pc.sum(kept).as_py():
                dimension = dimension or store.dimension(folder, shard.name)
                anywhere = replace(
                    shard, folder=files.absolute(shard.folder)
                )  # a task may run in another working folder
                load = partial(_load, anywhere, hashed, dimension, kept if size < len(kept) else None, applied)
                parts.append(Part(start, size, load))
                shards.append(shard)
                ids.append(table["image_id"].filter(kept))
                start += size
    if not parts and not errors and not chosen:
        raise UserError(f"{folder!r} holds no descriptors; make them with extract.py")
    found = pa.chunked_array((chunk for part in ids for chunk in part.chunks), pa.string())
    failed = pa.array(list(errors), pa.string())
    if pc.count_distinct(found).as_py() < len(found) or pc.any(pc.is_in(found, failed)).as_py():
        raise UserError(f"{folder!r} has an image more than once; run the same extract.py again")
    rows = None if chosen is None else _positions(found, failed, chosen, folder)
    if not parts:
        photo, reason = next(iter(errors.items()))
        raise UserError(f"none of the {len(errors)} photos of {folder!r} could be decoded, such as {photo!r}: {reason}")
    return DescriptorFolder(folder, found, errors, embedding, parts, shards, rows)


def _positions(found: pa.ChunkedArray, failed: pa.Array, chosen: Manifest, folder: str) -> np.ndarray:
    """The positions of the ids `found` in `chosen`. Raises UserError if an id of `chosen` is in neither list."""
    ids = chosen.table["image_id"].combine_chunks()
    rows: np.ndarray = pc.index_in(found, ids).to_numpy().astype(np.int64)
    present = np.zeros(len(chosen), dtype=bool)
    present[rows] = True
    present[pc.index_in(failed, ids).to_numpy()] = True
    descriptors.require_present(present, folder, chosen)
    return rows


def _load(
    shard: Shard, hashed: bool, dimension: int, kept: pa.ChunkedArray | None, whitening: Whitening | None
) -> np.ndarray:
    content = shard.read()
    table = store.read_shard(shard.folder, shard.name, ["descriptor"], None, dimension, content=content)
    shard.require(len(table), content if hashed else None)
    column = table["descriptor"]
    vectors = store.vectors(column.filter(kept) if kept else column)
    return checked_and_whitened(vectors, whitening, shard.folder)


def load_whitening(file: str, embedding: Embedding, folder: str) -> tuple[Embedding, Whitening]:
    """Loads the whitening in `file`. Returns the embedding of the whitened descriptors of `folder`, and the whitening.

    Raises UserError if the whitening was fitted to another embedding than `embedding`, the embedding of `folder`.
    """
    found = whitening.load(file)
    if found.embedding:
        identity.require_equal(from_json(found.embedding, repr(file)), file, embedding, folder)
    return embedding.whitened(found.sha256), found


def checked_and_whitened(vectors: np.ndarray, whitening: Whitening | None, folder: str) -> np.ndarray:
    """Checks the descriptors `vectors` (n, D) of `folder`, and returns them, whitened if there is a whitening.

    Exact search needs norms of at most `LONGEST`. Raises UserError if a norm is larger or not a number.
    """
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    if not (lengths <= LONGEST).all():  # the comparison is false for NaN, too
        wrong = lengths[~(lengths <= LONGEST)][0]
        raise UserError(f"{folder!r} has a descriptor of length {wrong}, not 1; extract it again")
    return whitening.apply(vectors) if whitening else vectors
