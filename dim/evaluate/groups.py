"""Groups of a query's positives by columns of the manifest, such as ILIAS's `scale` and `clutter`.

A positive is in one group of each column. Its grade names these groups, so a level of a protocol can count the
positives of one group and take those of the others out of list and truth.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise, product

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.data.manifest import Manifest
from dim.errors import UserError, quoted
from dim.io import files, tables

Groups = Mapping[
    str, tuple[float, ...]
]  # the ascending edges of the groups of each column; a group lacks its upper one

# ILIAS's groups (Kordopatis-Zilos et al., arXiv:2502.11748), with the edges of its own code: by the share of the photo
# that shows the object, and by the clutter around the object.
ILIAS: Groups = {
    "scale": (0.0, 0.06880213760855043, 0.13526567164179104, 0.2729876723163842, np.inf),
    "clutter": (0.0, 18.0, 33.0, 53.0, np.inf),
}


def grades(groups: Groups) -> dict[str, tuple[int, ...]]:
    """Maps each grade of a positive to the number of its group in each column of `groups`."""
    chosen = product(*(range(len(edges) - 1) for edges in groups.values()))
    return {"group " + ",".join(map(str, numbers)): numbers for numbers in chosen}


def levels(groups: Groups) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Yields, for each group, its name, such as "clutter@18-33", the grades of its positives, and the other grades."""
    known = grades(groups)
    for place, (column, edges) in enumerate(groups.items()):
        for number, (low, high) in enumerate(pairwise(edges)):
            within = tuple(grade for grade, chosen in known.items() if chosen[place] == number)
            others = tuple(grade for grade in known if grade not in within)
            yield f"{column}@{low:.3g}-{high:.3g}", within, others


def numbers(groups: Groups, database: Manifest, rows: np.ndarray) -> np.ndarray:
    """The position in `grades` of the grade of each of the database rows `rows` (R,), which are positives of queries.

    Raises UserError if the manifest lacks a column of `groups`, or has no number from 0 there for one of the rows.
    """
    found = np.zeros(len(rows), np.int64)
    for name, edges in groups.items():
        own = np.searchsorted(edges, _values(database, name, rows), "right") - 1
        found = found * (len(edges) - 1) + own
    return found


def _values(database: Manifest, name: str, rows: np.ndarray) -> np.ndarray:
    tables.require_columns(database.table, [name], database.uri)
    column = database.table[name].take(pa.array(rows, pa.int64()))
    try:
        values = pc.cast(column, pa.float64())
    except pa.ArrowException as error:
        raise UserError(f"{database.uri!r}: column {name!r} must be numbers: {files.reason(error)}") from error
    known = pc.fill_null(pc.and_(pc.greater_equal(values, 0.0), pc.is_finite(values)), False)
    if (place := pc.index(known, False).as_py()) >= 0:
        image_id, value = database.table["image_id"][int(rows[place])].as_py(), column[place].as_py()
        raise UserError(
            f"{database.uri!r}: image_id {quoted(image_id)} has the {name} {quoted(value)}; each photo with a label "
            "needs a number from 0"
        )
    found: np.ndarray = values.to_numpy()
    return found
