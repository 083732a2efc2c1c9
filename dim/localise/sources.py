"""What a re-ranking works with: the network that made some descriptors, and the photos that they are of."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.data import manifest as manifests
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.extract import identity
from dim.extract.config import ExtractConfig, Extraction
from dim.extract.embedder import Recipe
from dim.extract.embedding import Embedding, NetworkEmbedding
from dim.io import files
from dim.localise.rerank import Photos


def recipe_of(
    folder: str, embedding: Embedding, config: Extraction, model: str | None = None, whitening: str | None = None
) -> Recipe:
    """The recipe of the descriptors, or of the index of them, in `folder`, whose vectors have the `embedding`.

    `model` and `whitening` are by default those that the folder names. Raises UserError if they make other descriptors,
    or if the descriptors were made elsewhere.
    """
    from dim.extract.job import recipe_of  # noqa: PLC0415  (other searches need no Ray)

    if not isinstance(embedding, NetworkEmbedding):
        raise UserError(f"--rerank looks at photos with the network, but {folder!r} holds descriptors made elsewhere")
    known = identity.origins_of(folder)
    model, whitening = model or known.get("model"), whitening or known.get("whitening")
    if model is None:
        raise UserError(f"--rerank needs --model, the model that made {folder!r}")
    settings = config.following(embedding)
    extraction = ExtractConfig(
        manifest="", model=model, out="", whitening=whitening if embedding.whitening else None, **settings
    )
    recipe = recipe_of(extraction, extraction.source(model))
    identity.require_equal(embedding, folder, identity.embedding_of(recipe), model)
    return recipe


def of_rows(*chosen: tuple[Manifest, np.ndarray]) -> Photos:
    """The photos of some rows of manifests, one manifest after the other."""
    parts = [pa.table({"path": one.uris, "box": one.box_lists}).take(pa.array(rows)) for one, rows in chosen]
    table = pa.concat_tables(parts)
    return lambda rows: table.take(pa.array(rows))


def of_folder(folder: str, ids: pa.ChunkedArray, root: str | None) -> Photos:
    """The photos with the `ids`, of which there are descriptors, or an index of them, in `folder`.

    Raises UserError if the manifest that they were made from is gone or lacks one of them, or one is outside `root`.
    """
    uri = identity.origins_of(folder).get("manifest")
    if uri is None or not files.exists(uri):
        raise UserError(f"--rerank needs the photos, but the manifest of {folder!r} is gone: {uri!r}")
    return of_ids(manifests.read(uri), ids, root)


def of_ids(manifest: Manifest, ids: pa.ChunkedArray, root: str | None = None) -> Photos:
    """The photos of `manifest` with the `ids`. Raises UserError if it lacks one of them, or one is outside `root`."""
    rows = pc.index_in(ids, manifest.ids.combine_chunks())
    if rows.null_count:
        missing = ids.filter(pc.is_null(rows))[0].as_py()
        raise UserError(f"--rerank needs the photos, but {manifest.uri!r} has no image_id {missing!r} any more")
    if root:
        identity.require_under(root, Manifest(manifest.uri, manifest.table.take(rows)))
    return of_rows((manifest, rows.to_numpy()))
