"""Reads a store's descriptors into memory, in the order of a manifest's rows."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

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
    position = {image_id: row for row, image_id in enumerate(manifest.image_ids)}
    times = np.zeros(len(manifest), dtype=np.int64)
    found: list[np.ndarray] = []
    parts: list[np.ndarray] = []
    for _, table in store.read_shards(folder, ["image_id", "descriptor", "status"], hashed=True):
        rows = np.array([position.get(image_id, -1) for image_id in table["image_id"].to_pylist()], dtype=np.int64)
        times += np.bincount(rows[rows >= 0], minlength=len(manifest))
        wanted = (rows >= 0) & (table["status"].to_numpy() == store.OK)
        if wanted.any():
            found.append(rows[wanted])
            parts.append(store.vectors(table["descriptor"].filter(pa.array(wanted))))
    if len(repeated := manifest.image_ids[times > 1]):
        raise UserError(f"{folder!r} has {repeated[0]!r} more than once; run the same extract.py again")
    require_present(times > 0, folder, manifest)
    if not found:
        raise UserError(
            f"{folder!r} has no descriptor: each of its {len(manifest)} rows is an error; see its column 'error'"
        )
    rows = np.concatenate(found)
    order = np.argsort(rows, kind="stable")
    return Descriptors(embedding, rows[order], np.concatenate(parts)[order])


def require_present(present: np.ndarray, folder: str, manifest: Manifest) -> None:
    """Raises UserError unless `present`, bool (N,), is true for each row of the manifest."""
    if not present.all():
        missing = manifest.image_ids[~present]
        raise UserError(
            f"{folder!r} lacks {len(missing)} of the {len(manifest)} images asked for, the first {missing[0]!r}; "
            f"run extract.py on {manifest.uri!r} with --out {folder}"
        )
