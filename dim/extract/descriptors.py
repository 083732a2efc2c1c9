"""Reads a store's descriptors into memory, in the order of a manifest's rows."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.extract import identity, store
from dim.extract.embedding import Embedding


@dataclass(frozen=True)
class Descriptors:
    """`vectors` are descriptors, float32 (n, D). `rows` (n,) are the positions of their photos in the manifest."""

    embedding: Embedding
    rows: np.ndarray
    vectors: np.ndarray


def read(folder: str, manifest: Manifest) -> Descriptors:
    """Reads the descriptors of the manifest's rows from the finished store `folder`.

    Error rows, and rows that are not in the manifest, are left out. Raises UserError if a shard is damaged, all rows
    are error rows, or a row of the manifest is missing or repeated.
    """
    embedding = identity.of_folder(folder)
    tables = [table for _, table in store.read_shards(folder, ["image_id", "status"])]
    keys = pa.concat_tables(tables)
    places = pc.index_in(keys["image_id"], manifest.ids).fill_null(-1).to_numpy()
    times = np.bincount(places[places >= 0], minlength=len(manifest))
    if (times > 1).any():
        repeated = manifest.ids[int(times.argmax())].as_py()
        raise UserError(f"{folder!r} has {repeated!r} more than once; run the same extract.py again")
    require_present(times > 0, folder, manifest)
    wanted = (places >= 0) & pc.equal(keys["status"], store.OK).to_numpy()
    if not wanted.any():
        raise UserError(
            f"{folder!r} has no descriptor: each of its {len(manifest)} rows is an error; see its column 'error'"
        )
    masks = np.split(wanted, np.cumsum([table.num_rows for table in tables])[:-1])
    shards = store.read_shards(folder, ["descriptor"], hashed=True)
    parts = [
        store.vectors(table["descriptor"].filter(pa.array(mask)))
        for mask, (_, table) in zip(masks, shards, strict=True)
    ]
    rows = places[wanted].astype(np.int64)
    order = np.argsort(rows, kind="stable")
    return Descriptors(embedding, rows[order], np.concatenate(parts)[order])


def require_present(present: np.ndarray, folder: str, manifest: Manifest) -> None:
    """Raises UserError unless `present`, bool (N,), is true for each row of the manifest."""
    if not present.all():
        missing = np.flatnonzero(~present)
        first = manifest.ids[int(missing[0])].as_py()
        raise UserError(
            f"{folder!r} lacks {len(missing)} of the {len(manifest)} images asked for, the first {first!r}; "
            f"run extract.py on {manifest.uri!r} with --out {folder}"
        )
