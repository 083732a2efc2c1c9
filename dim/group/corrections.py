"""Corrections by a person: pairs of photos that are in one group, or in two (`--corrections`)."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.data import manifest
from dim.errors import UserError, quoted
from dim.group.union_find import UnionFind
from dim.io import tables

SAME, APART = KINDS = ("must-link", "cannot-link")
COLUMNS = ("image_id", "other_id", "kind")


@dataclass(frozen=True)
class Corrections:
    """Pairs of photos that are in the `same` group, and pairs that are `apart`, both int64 (P, 2)."""

    same: np.ndarray
    apart: np.ndarray


def none() -> Corrections:
    """No corrections."""
    return Corrections(np.zeros((0, 2), np.int64), np.zeros((0, 2), np.int64))


def read(uri: str, ids: pa.ChunkedArray) -> Corrections:
    """Reads a table with the columns image_id, other_id and kind (must-link or cannot-link) on the photos `ids` (N,).

    Raises UserError if a column is missing, a photo is not among `ids`, a kind is unknown, or corrections contradict
    each other.
    """
    table = tables.read(uri)
    tables.require_columns(table, COLUMNS, uri)
    one, other, kind = (manifest.text_column(uri, table, name) for name in COLUMNS)
    for value in kind.unique().to_pylist():
        if value not in KINDS:
            raise UserError(f"{uri!r}: unknown kind {quoted(value)}; use {' or '.join(KINDS)}")
    pairs = np.stack([_rows(uri, ids, column) for column in (one, other)], axis=1)
    same = pc.equal(kind, SAME).to_numpy()
    found = Corrections(pairs[same], pairs[~same])
    union = UnionFind(len(ids))
    union.join(*found.same.T)
    roots = union.roots()[found.apart]
    if len(wrong := found.apart[roots[:, 0] == roots[:, 1]]):
        names = " and ".join(quoted(ids[int(row)].as_py()) for row in wrong[0])
        raise UserError(
            f"{uri!r}: {names} are {APART}, but corrections of kind {SAME} connect them; remove one of these"
        )
    return found


def _rows(uri: str, ids: pa.ChunkedArray, names: pa.ChunkedArray) -> np.ndarray:
    places = pc.index_in(names, ids)
    if places.null_count:
        missing = names.filter(places.is_null())
        raise UserError(
            f"{uri!r}: {len(missing)} corrections are on photos that are not grouped, the first "
            f"{quoted(missing[0].as_py())}; remove them"
        )
    rows: np.ndarray = places.to_numpy().astype(np.int64)
    return rows
