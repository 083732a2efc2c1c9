"""The tables that group.py writes: groups.parquet, the labelled manifest, and the curve of thresholds."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.data import photos
from dim.data.manifest import Manifest
from dim.group.components import Grouping
from dim.group.threshold import Curve

OBJECT, COPY = "object", "copy"  # levels
GIVEN_LABEL = "given_label"  # the column for labels that the manifest had
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("image_id", "level", "group")),
        *(("size", pa.int64()), ("similarity", pa.float64()), ("medoid", pa.bool_()), ("confidence", pa.float64())),
    ]
)


@dataclass(frozen=True)
class Found:
    """What group.py finds: the rows of both levels of groups.parquet, the curve, and the table of duplicates.csv."""

    objects: pa.Table
    copies: pa.Table
    curve: Curve
    duplicates: pa.Table


def groups(ids: pa.ChunkedArray, found: Grouping, confidence: np.ndarray, *, level: str, least: int = 2) -> pa.Table:
    """The rows of one level, in the order of the image ids. Groups of fewer than `least` photos have no name.

    At the level of copies, only photos in a group have a row.
    """
    rows = pc.sort_indices(ids).to_numpy().astype(np.int64)
    sizes = found.sizes
    if level == COPY:
        rows = rows[sizes[rows] >= 2]
    named = sizes[rows] >= least
    columns = {
        "image_id": ids.take(pa.array(rows)),
        "level": pa.array([level] * len(rows), pa.string()),
        "group": ids.take(pa.array(found.groups[rows], mask=~named)),
        "size": pa.array(sizes[rows]),
        "similarity": pa.array(np.round(found.similarity[rows], 6)),
        "medoid": pa.array(found.medoids[rows] == rows),
        "confidence": pa.array(np.round(confidence[rows], 6)),
    }
    return pa.table(columns, schema=SCHEMA)


def labels(ids: pa.ChunkedArray, found: Grouping, least: int) -> pa.ChunkedArray:
    """The label of each photo: the first photo of its group; null for a group of 2 to `least` − 1 photos.

    A photo that is alone is a label of its own, so that train.py takes it as a negative only.
    """
    unnamed = (found.sizes > 1) & (found.sizes < least)
    return ids.take(pa.array(found.groups, mask=unnamed))


def labelled(chosen: Manifest, positions: np.ndarray, names: pa.ChunkedArray, folder: str) -> pa.Table:
    """The rows of `chosen` with the labels `names` at the `positions`, for a manifest in `folder`."""
    table = chosen.table
    if table["label"].null_count < len(table):
        table = table.append_column(GIVEN_LABEL, table["label"])
    places = np.full(len(chosen), -1)
    places[positions] = np.arange(len(positions))
    column = names.take(pa.array(places, mask=places < 0))
    table = table.set_column(table.column_names.index("label"), "label", column)
    paths = photos.manifest_paths(chosen.paths, folder)
    return table.set_column(table.column_names.index("path"), "path", pa.array(paths, pa.string()))


def curve(found: Curve) -> pa.Table:
    """The table of curve.csv."""
    rounded = {name: np.round(values, 6) for name, values in vars(found).items()}
    return pa.table(
        {name.removesuffix("s") if name == "thresholds" else name: values for name, values in rounded.items()}
    )


def count(groups: pa.Table) -> int:
    """The number of groups that have a name in a table of groups, with two photos or more."""
    several = groups.filter(pc.greater(groups["size"], 1))
    return int(pc.count_distinct(several["group"]).as_py())
