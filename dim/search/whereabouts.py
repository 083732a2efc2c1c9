"""Where the photos behind ids lie: the manifest that a folder of descriptors, or an index of them, was made from."""

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dim import files, output, tables
from dim.data import manifest
from dim.errors import UserError
from dim.pages.photos import Photo


@dataclass(frozen=True)
class Whereabouts:
    """What is known of some photos, by id."""

    photos: dict[str, Photo]
    labels: dict[str, str | None]


NOT_KNOWN = Whereabouts({}, {})


def of_manifest(uri: str, ids: Collection[str]) -> Whereabouts:
    """What the manifest at `uri` knows of the photos `ids`. Raises UserError where it cannot be read."""
    found = manifest.read(uri)
    found = manifest.Manifest(uri, found.table.filter(pc.is_in(found.table["image_id"], pa.array(ids, pa.string()))))
    photos = map(Photo, found.paths, found.boxes)
    return Whereabouts(
        dict(zip(found.image_ids, photos, strict=True)), dict(zip(found.image_ids, found.labels, strict=True))
    )


def of_folder(folder: str, ids: Collection[str]) -> Whereabouts:
    """What is known of the photos `ids` of an index or of descriptors: nothing where the manifest is gone."""
    record = output.record_of(folder)
    inputs = record["inputs"] if record else {}
    if "descriptors" in inputs:
        return of_folder(inputs["descriptors"], ids)
    if not inputs.get("manifest") or not files.exists(inputs["manifest"]):
        return NOT_KNOWN
    try:
        return of_manifest(inputs["manifest"], ids)
    except UserError:  # another file has taken its place
        return NOT_KNOWN


def of_queries(path: str, photos: str, ids: Collection[str]) -> Whereabouts:
    """What is known of the queries `ids` that `path` names; `photos` is the manifest that was made of them, if any."""
    if files.exists(photos):
        # A manifest that the user gave has labels too.
        return of_manifest(path if path.endswith(tables.SUFFIXES) else photos, ids)
    return of_folder(path, ids)
