"""What `--queries` names: a photo, a folder of photos, a manifest, or a folder of descriptors.

Photos are listed in a manifest, and their descriptors are extracted with the settings of the index.
"""

import tempfile
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dim.app import output_folder
from dim.data import manifest, photos
from dim.data.manifest import BOX
from dim.errors import UserError
from dim.extract import identity
from dim.extract.config import ExtractConfig
from dim.extract.embedding import Embedding, NetworkEmbedding
from dim.io import files, tables
from dim.search import descriptor_folder, exact
from dim.search.config import SearchConfig
from dim.search.database import release, require_room
from dim.search.descriptor_folder import DescriptorFolder

QUERIES_FILE = "queries.parquet"  # the manifest of the photos, a file in the output folder


@dataclass(frozen=True)
class Queries:
    """The queries that could be read, in the order of their ids: `ids`, strings (Q,), and `vectors`, float32 (Q, D).

    `vectors` is mapped from a temporary file, because millions of queries may not fit into memory. `errors` maps the id
    of each other query to the reason why it could not be read.
    """

    ids: pa.ChunkedArray
    vectors: np.ndarray
    errors: dict[str, str]


def are_descriptors(path: str) -> bool:
    """Whether `path` is a folder of descriptors. Raises UserError if `path` doesn't exist."""
    if not files.exists(path):
        raise UserError(f"--queries {path!r}: there is no such file or folder")
    record = output_folder.record_of(path) if files.is_folder(path) else None
    return identity.holds_descriptors(record)


def list_photos(path: str) -> pa.Table:
    """Makes a manifest of the photos at `path`: ids, paths and, if `path` is itself a manifest, the boxes in it.

    A single photo gets its file name as id, and a photo in a folder gets its path within the folder. Raises UserError
    if the folder is empty, if the manifest is broken, or if no row of the manifest may be a query.
    """
    if tables.is_table(path):
        found = manifest.read(path).select(role="query")
        boxes = {name: found.table[name] for name in BOX if name in found.table.column_names}
        return pa.table({"image_id": found.table["image_id"], "path": list(map(files.absolute, found.paths)), **boxes})
    if files.is_folder(path):
        names = photos.file_names(path)
        if not names:
            raise UserError(f"--queries {path!r} is an empty folder; put photos into it")
        return pa.table({"image_id": names, "path": [files.join(files.absolute(path), name) for name in names]})
    return pa.table({"image_id": [files.name(path)], "path": [files.absolute(path)]})


def extract_config(config: SearchConfig, embedding: Embedding) -> ExtractConfig:
    """Makes the config that extracts the photos.

    Settings that have their default values are taken from `embedding`, which made the index. Raises UserError if
    --model is missing, or if the model and the flags make another embedding than `embedding`.
    """
    from dim.extract.job import recipe_of  # noqa: PLC0415  (queries that are descriptors need no Ray)

    if config.model is None:
        raise UserError(f"--queries {config.queries!r} are photos; give --model, the model that made {config.index!r}")
    if not isinstance(embedding, NetworkEmbedding):
        raise UserError(
            f"--queries {config.queries!r} are photos, and {config.index!r} holds descriptors made elsewhere, by "
            f"{embedding.network!r}; give a folder of its descriptors, which import.py makes"
        )
    settings = config.following(embedding)
    queries = files.join(config.out, QUERIES_FILE)
    out = files.join(config.out, "descriptors")
    found = ExtractConfig(manifest=queries, model=config.model, out=out, whitening=config.whitening, **settings)
    recipe = recipe_of(found, found.source(config.model))
    identity.require_equal(embedding, config.index, identity.embedding_of(recipe), config.model)
    return found


def read_descriptors(folder: str, whitening_file: str | None, embedding: Embedding, index: str) -> Queries:
    """Reads the descriptors in `folder` as queries, and whitens them unless they are whitened already.

    `embedding` made `index`. Raises UserError if `folder` has no descriptors, or descriptors of another embedding.
    """
    rows = descriptor_folder.read(folder, whitening_file)
    identity.require_equal(embedding, index, rows.embedding, folder)
    places = exact.tie_order_of(rows.ids)
    return Queries(rows.ids.take(np.argsort(places)), _file_of(rows, places), rows.errors)


def _file_of(rows: DescriptorFolder, places: np.ndarray) -> np.ndarray:
    """Copies `rows` to an array (Q, D) in a temporary file, in which row i is at `places[i]`.

    Raises UserError if the disk of temporary files has no room for it.
    """
    with tempfile.TemporaryFile() as file:
        done = 0
        for block in rows:
            if not done:
                require_room(len(rows) * block[:1].nbytes)
                file.truncate(len(rows) * block[:1].nbytes)
                vectors = np.memmap(file, np.float32, "r+", shape=(len(rows), block.shape[1]))
            vectors[places[done : done + len(block)]] = block
            done += len(block)
            release(vectors)
        return vectors
