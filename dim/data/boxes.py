"""The boxes of a manifest: the columns x1, y1, x2 and y2, in pixels of the upright image."""

from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.errors import UserError, quoted
from dim.io import files, tables

BOX = ("x1", "y1", "x2", "y2")


def checked(uri: str, table: pa.Table) -> pa.Table:
    """Returns `table` with its box columns as float64. Raises UserError if a box is not four usable numbers."""
    present = [name for name in BOX if name in table.column_names]
    if not present:
        return table
    if len(present) < len(BOX):
        raise UserError(f"{uri!r} has {', '.join(present)} but a box needs x1, y1, x2, y2")
    for name in BOX:
        try:
            values = tables.decode_dictionary(table[name]).cast(pa.float64())
        except pa.ArrowException as error:
            raise UserError(f"{uri!r}: column {name} must be numbers: {files.reason(error)}") from error
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)  # in pandas, NaN is missing
        table = table.set_column(table.column_names.index(name), name, values)
    empty = pc.or_kleene(pc.less_equal(table["x2"], table["x1"]), pc.less_equal(table["y2"], table["y1"]))
    missing = [table[name].is_null() for name in BOX]
    faults = {
        "an incomplete box": pc.and_not(reduce(pc.or_, missing), reduce(pc.and_, missing)),
        "a box with an infinite corner": reduce(pc.or_kleene, [pc.is_inf(table[name]) for name in BOX]),
        "an empty box (x2 ≤ x1 or y2 ≤ y1)": empty,
    }
    for fault, mask in faults.items():
        if rows := true_rows(mask):
            raise UserError(f"{uri!r}: image_id {quoted(table['image_id'][rows[0]].as_py())} has {fault}")
    return table


def lists(table: pa.Table) -> pa.Array:
    """The boxes [x1, y1, x2, y2] of a checked table, or null for a row without a box: lists of float64 (N,)."""
    if not all(name in table.column_names for name in BOX):
        return pa.nulls(table.num_rows, pa.list_(pa.float64()))
    missing = table[BOX[0]].is_null().to_numpy()
    corners = np.stack([table[name].to_numpy() for name in BOX], axis=1)[~missing]
    starts = np.concatenate([[0], 4 * np.cumsum(~missing)]).astype(np.int32)
    return pa.ListArray.from_arrays(starts, corners.reshape(-1), mask=pa.array(missing))


def true_rows(mask: pa.ChunkedArray) -> list[int]:
    """Returns the numbers of the rows, from 0, for which `mask` is true."""
    rows: list[int] = np.flatnonzero(pc.fill_null(mask, False).to_numpy()).tolist()
    return rows
