"""Ground truth: a table of `query_id, image_id, grade`, for benchmarks whose labels do not say which images match.

The grades are good, ok and junk (Oxford5k, Paris6k, GLDv2) or easy, hard and junk (ROxford5k, RParis6k). A junk image
counts neither as a hit nor as a miss.
"""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dim.app.config import nearest
from dim.data import manifest as manifests
from dim.data.manifest import Manifest
from dim.errors import UserError, quoted
from dim.io import tables

GRADES = ("good", "ok", "junk", "easy", "hard")
COLUMNS = ("query_id", "image_id", "grade")


@dataclass(frozen=True)
class GroundTruth:
    """The ground truth in the file `uri`. `images[query_id][grade]` lists the ids of the images with that grade."""

    uri: str
    images: dict[str, dict[str, list[str]]]

    @property
    def grades(self) -> set[str]:
        """The grades that occur in the file."""
        return {grade for graded in self.images.values() for grade in graded}


def read(uri: str, manifest: Manifest) -> GroundTruth:
    """Reads the ground truth at `uri`, in Parquet or CSV, and checks it against `manifest`.

    Raises:
        UserError: The file is missing, has no row, or lacks a column; a cell is empty; a grade is unknown; an id is not
            in the manifest; a query grades one image twice; or the import that writes the file has not finished.
    """
    manifests.require_imported(uri)
    table = tables.read(uri)
    tables.require_columns(table, COLUMNS, uri)
    if table.num_rows == 0:
        raise UserError(f"{uri!r} has no row")
    columns = [manifests.text_column(uri, table, name) for name in COLUMNS]
    named = pa.chunked_array(columns[0].chunks + columns[1].chunks, pa.string()).unique()
    ids = manifest.table["image_id"]
    known = set(ids.filter(pc.is_in(ids, named)).to_pylist())  # of the manifest's ids, those that the table names
    seen: set[tuple[str, str]] = set()
    images: dict[str, dict[str, list[str]]] = {}
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
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
