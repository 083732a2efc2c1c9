"""Ground truth, where labels don't say which images belong together: Parquet or CSV of `query_id, image_id, grade`.

Grades: good and ok (Oxford5k, Paris6k, GLDv2) or easy and hard (ROxford5k, RParis6k), and junk, which counts neither
for nor against.
"""

from dataclasses import dataclass

from dim.app.config import nearest
from dim.data import manifest as manifests
from dim.data.manifest import Manifest
from dim.errors import UserError, quoted
from dim.io import tables

GRADES = ("good", "ok", "junk", "easy", "hard")
COLUMNS = ("query_id", "image_id", "grade")


@dataclass(frozen=True)
class GroundTruth:
    """`images[query_id][grade]` are the ids of the images that have this grade for this query; `uri` is its file."""

    uri: str
    images: dict[str, dict[str, list[str]]]

    @property
    def grades(self) -> set[str]:
        """The grades that occur."""
        return {grade for graded in self.images.values() for grade in graded}


def read(uri: str, manifest: Manifest) -> GroundTruth:
    """Reads the ground truth at `uri` and checks it against `manifest`.

    Raises UserError: no such file, a missing column, an empty cell, no row, an unknown grade, an id that is not in the
    manifest, an image graded twice for a query, or that the import which writes it has not ended.
    """
    manifests.require_imported(uri)
    table = tables.read(uri)
    tables.require_columns(table, COLUMNS, uri)
    if table.num_rows == 0:
        raise UserError(f"{uri!r} has no row")
    known = set(manifest.image_ids)
    seen: set[tuple[str, str]] = set()
    images: dict[str, dict[str, list[str]]] = {}
    rows = zip(*(manifests.text_column(uri, table, name).to_pylist() for name in COLUMNS), strict=True)
    for number, (query, image, grade) in enumerate(rows, start=1):
        if grade not in GRADES:
            raise UserError(f"{uri!r}: row {number} has the grade {quoted(grade)}; {nearest(str(grade), list(GRADES))}")
        for name, value in (("query_id", query), ("image_id", image)):
            if value not in known:
                raise UserError(f"{uri!r}: row {number} has the {name} {quoted(value)}, which {manifest.uri!r} lacks")
        if (query, image) in seen:
            raise UserError(
                f"{uri!r}: row {number} grades {quoted(image)} for {quoted(query)} a second time; keep one of the rows"
            )
        seen.add((query, image))
        images.setdefault(query, {}).setdefault(grade, []).append(image)
    return GroundTruth(uri, images)
