"""Reads a folder of descriptors as rows to search.

`read` reads only the ids and errors into memory. The vectors of a part are read, and whitened, when the part is loaded.
"""

from collections.abc import Iterator, Sequence
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

_COLUMNS = ["image_id", "status", "error"]  # those that `read` reads
LONGEST = 1.01  # largest norm of a descriptor; the norm is 1 before the descriptor is rounded to float16 or bfloat16


@dataclass(frozen=True)
class DescriptorFolder:
    """The photos that have a descriptor in `folder`, in the order of the shards.

    Each of the `parts` loads the descriptors of one shard, of `dimension` values each, in any process of the cluster.
    `ids` are strings (N,), and `shards` are the shards of the parts.
    `errors` maps the id of each photo that could not be decoded to the reason. `embedding` includes the whitening that
    is applied. `rows`, int64 (N,), are the positions of the photos in the manifest that was given to `read`, if any.
    """

    folder: str
    dimension: int
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
    with progress.step(f"reading {folder!r}"):
        read_shards = list(store.read_shards(folder, _COLUMNS))
    nothing = pa.schema([store.schema(1).field(name) for name in _COLUMNS]).empty_table()
    table = pa.concat_tables([nothing, *(shard for _, shard in read_shards)])
    # One look-up for all shards, because Arrow makes a hash table of all ids of `chosen` for each.
    places = None if chosen is None else pc.index_in(table["image_id"], chosen.ids)
    ok, asked = pc.equal(table["status"], store.OK), True if places is None else places.is_valid()
    kept, broken = pc.and_(ok, asked), table.filter(pc.and_(pc.invert(ok), asked))
    found, failed = table["image_id"].filter(kept), broken["image_id"].combine_chunks()
    if not (len(found) or len(failed) or chosen):
        raise UserError(f"{folder!r} holds no descriptors; make them with extract.py")
    if pc.count_distinct(found).as_py() < len(found) or pc.any(pc.is_in(found, failed)).as_py():
        raise UserError(f"{folder!r} has an image more than once; run the same extract.py again")
    rows = None if places is None or chosen is None else _positions(places, kept, chosen, folder)
    errors = dict(zip(failed.to_pylist(), broken["error"].to_pylist(), strict=True))
    if not len(found):
        photo, reason = next(iter(errors.items()))
        raise UserError(f"none of the {len(errors)} photos of {folder!r} could be decoded, such as {photo!r}: {reason}")
    masks = np.split(kept.to_numpy(), np.cumsum([len(shard) for _, shard in read_shards])[:-1])
    used = [(shard, mask) for (shard, _), mask in zip(read_shards, masks, strict=True) if mask.any()]
    stored = store.dimension(folder, used[0][0].name)
    parts = _parts(used, hashed, stored, applied)
    dimension = applied.projection.shape[0] if applied else stored
    return DescriptorFolder(folder, dimension, found, errors, embedding, parts, [shard for shard, _ in used], rows)


def _positions(places: pa.ChunkedArray, kept: pa.ChunkedArray, chosen: Manifest, folder: str) -> np.ndarray:
    """The positions in `chosen` of the rows that are `kept`. `places` has those of all rows of the folder.

    Raises UserError if a row of `chosen` is not in the folder.
    """
    present = np.zeros(len(chosen), dtype=bool)
    present[places.drop_null().to_numpy()] = True
    descriptors.require_present(present, folder, chosen)
    rows: np.ndarray = places.filter(kept).to_numpy().astype(np.int64)
    return rows


def _parts(
    shards: Sequence[tuple[Shard, np.ndarray]], hashed: bool, dimension: int, applied: Whitening | None
) -> list[Part]:
    """The rows of `shards` that are set in the mask of each, as parts that any process can load."""
    parts, start = [], 0
    for shard, mask in shards:
        anywhere = replace(shard, folder=files.absolute(shard.folder))  # a task may run in another working folder
        load = partial(_load, anywhere, hashed, dimension, None if mask.all() else mask, applied)
        parts.append(Part(start, int(mask.sum()), load))
        start += parts[-1].size
    return parts


def _load(
    shard: Shard, hashed: bool, dimension: int, kept: np.ndarray | None, whitening: Whitening | None
) -> np.ndarray:
    content = shard.read()
    table = store.read_shard(shard.folder, shard.name, ["descriptor"], None, dimension, content=content)
    shard.require(len(table), content if hashed else None)
    column = table["descriptor"]
    vectors = store.vectors(column if kept is None else column.filter(pa.array(kept)))
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
