"""Where the photos behind ids lie: the manifest that a folder of descriptors, or an index of them, was made from."""

import logging
from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dim import files, tables
from dim.data import manifest
from dim.errors import UserError
from dim.extract import content, identity
from dim.pages.photos import Photo

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Whereabouts:
    """What is known of some photos, by id."""

    photos: dict[str, Photo]
    labels: dict[str, str | None]


NOT_KNOWN = Whereabouts({}, {})


def of_manifest(uri: str, ids: Collection[str], root: str | None = None) -> Whereabouts:
    """What the manifest at `uri` knows of the photos `ids`.

    Raises UserError where it cannot be read, or one of them lies outside `root`.
    """
    found = manifest.read(uri)
    found = manifest.Manifest(uri, found.table.filter(pc.is_in(found.table["image_id"], pa.array(ids, pa.string()))))
    if root:
        content.require_under(root, found)
    photos = map(Photo, found.paths, found.boxes)
    return Whereabouts(
        dict(zip(found.image_ids, photos, strict=True)), dict(zip(found.image_ids, found.labels, strict=True))
    )


def of_folder(folder: str, ids: Collection[str], root: str | None = None) -> Whereabouts:
    """What is known of the photos `ids` of an index or of descriptors.

    That is nothing where the manifest is gone, or one of the photos lies outside `root`.
    """
    try:
        inputs = identity.inputs_of(folder)
        if descriptors := inputs.get("descriptors"):  # `folder` is an index of them
            inputs = identity.inputs_of(descriptors)
        uri = inputs.get("manifest")
        return of_manifest(uri, ids, root) if uri and files.exists(uri) else NOT_KNOWN
    except UserError as error:  # such as: another file has taken the manifest's place
        log.warning("photos of %s are not shown: %s", folder, error)
        return NOT_KNOWN


def of_queries(path: str, photos: str, ids: Collection[str], root: str | None = None) -> Whereabouts:
    """What is known of the queries `ids` that `path` names; `photos` is the manifest that was made of them, if any."""
    if files.exists(photos):
        # A manifest that the user gave has labels too.
        return of_manifest(path if tables.is_table(path) else photos, ids, root)
    return of_folder(path, ids, root)
