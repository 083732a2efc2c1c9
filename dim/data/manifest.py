"""The manifest: one row an image, Parquet or CSV.

Columns: `image_id` (string, unique), `path` (local, file://, s3:// or gs://, as `dim.io.uris` reads them; relative to
the manifest's folder), `label` (may be null), `split` (train, val, test or null), optional `role` (query, database, or
null for both) and `x1, y1, x2, y2` (a query's box in pixels of the upright image). Other columns are kept.

A text may stand there as a number (`dim.io.tables` says how it is written), and one that is empty, of spaces only or
NaN is null. Every other text is what it is: "NA", "None" and "nan" are labels.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.app import output
from dim.errors import UserError, quoted
from dim.io import files, tables, uris
from dim.io.tables import as_text, decode_dictionary, empty_as_null
from dim.io.uris import redacted

SPLITS = ("train", "val", "test")
ROLES = ("query", "database")
BOX = ("x1", "y1", "x2", "y2")
_TEXTS = ("image_id", "path", "label", "split", "role")
# The path first: where a table has no ids, they are made of the paths.
_REQUIRED = ("path", "image_id")


@dataclass(frozen=True)
class Manifest:
    """A validated manifest; `uri` is where it was read and what messages name."""

    uri: str
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def image_ids(self) -> np.ndarray:
        """The ids, object array of str (N,)."""
        return np.array(self.table["image_id"].to_pylist(), dtype=object)

    @cached_property
    def labels(self) -> np.ndarray:
        """The labels, object array of str or None (N,)."""
        return np.array(self.table["label"].to_pylist(), dtype=object)

    @cached_property
    def paths(self) -> list[str]:
        """Where each photo lies, resolved against the manifest's folder (N)."""
        folder = files.parent(files.absolute(self.uri))  # a worker may stand in another folder
        return [files.join(folder, path) for path in self.table["path"].to_pylist()]

    @cached_property
    def boxes(self) -> list[tuple[float, float, float, float] | None]:
        """Each row's box (x1, y1, x2, y2) in pixels, None where it has none (N)."""
        if not all(name in self.table.column_names for name in BOX):
            return [None] * len(self)
        columns = zip(*(self.table[name].to_pylist() for name in BOX), strict=True)
        return [None if None in box else box for box in columns]

    def select(self, split: str | None = None, role: str | None = None) -> "Manifest":
        """The rows of `split` (None: all) that may act as `role` (None: any). Raises UserError where there are none."""
        table = self.table
        if split is not None:
            table = table.filter(pc.equal(table["split"], split))
        if role is not None and "role" in table.column_names:
            table = table.filter(pc.fill_null(pc.equal(table["role"], role), True))
        if table.num_rows == 0:
            wanted = " and ".join(f"{k} {v!r}" for k, v in (("split", split), ("role", role)) if v)
            present = sorted({split or "empty" for split in self.table["split"].unique().to_pylist()})
            raise UserError(f"{self.uri!r} has no row with {wanted}; its splits are {', '.join(present)}")
        return replace(self, table=table)

    def splits(self) -> Iterator[str]:
        """The splits that have rows, in the order train, val, test."""
        present = set(self.table["split"].unique().to_pylist())
        return (split for split in SPLITS if split in present)


def read(uri: str) -> Manifest:
    """Reads and checks the manifest at `uri`.

    Raises UserError: no such file, a missing column, one that is no text or whose rows Arrow can't select, an empty or
    repeated image_id, an empty path or one that names no place, an unknown split or role, an incomplete or empty box,
    no row at all, or that the import which writes it has not ended.
    """
    require_imported(uri)
    found = checked(uri, tables.read(uri))
    _require_places(found)
    return found


def require_imported(uri: str) -> None:
    """Raises UserError where the table at `uri` lies in the folder of an import that has not ended: it may be a new one
    beside old ones. A person may have mended a table of one that has, so nothing else is asked.
    """
    folder = files.parent(uri)
    record = output.record_of(folder) if files.exists(uri) else None
    if record is not None and record["job"] == "import":
        output.finished_record(folder)


def checked(uri: str, table: pa.Table) -> Manifest:
    """`table` as the manifest that stands, or will stand, at `uri`. Raises UserError as `read` does, but for paths that
    name no place.
    """
    tables.require_columns(table, _REQUIRED, uri)
    for name in ("label", "split"):
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
    texts = [name for name in table.column_names if name in _TEXTS or not _selectable(table[name])]
    table = with_texts(uri, table, texts)
    for name in texts:
        if name in _TEXTS:
            table = table.set_column(table.column_names.index(name), name, empty_as_null(table[name]))
    if table.num_rows == 0:
        raise UserError(f"{uri!r} has no row")
    _require_ids(uri, table)
    for name, allowed in (("split", SPLITS), ("role", ROLES)):
        if name not in table.column_names:
            continue
        unknown = set(table[name].unique().to_pylist()) - {None, *allowed}
        if unknown:
            raise UserError(
                f"{uri!r}: unknown {name} {quoted(sorted(unknown)[0])}; use {', '.join(allowed)} or leave it empty"
            )
    return Manifest(uri, _with_boxes(uri, table))


def _require_ids(uri: str, table: pa.Table) -> None:
    for name in _REQUIRED:
        if (missing := _first(table[name].is_null())) is not None:
            raise UserError(f"{uri!r}: row {missing + 1} has no {name}")
        if broken := _rows(pc.match_substring(table[name], "\0")):
            raise UserError(f"{uri!r}: row {broken[0] + 1} has a NUL in its {name}{_others(len(broken))}")
    counts = table["image_id"].value_counts()
    repeated = [c["values"].as_py() for c in counts if c["counts"].as_py() > 1] if len(counts) < len(table) else []
    if repeated:
        raise UserError(f"{uri!r}: image_id {quoted(repeated[0])} stands more than once ({len(repeated)} such ids)")


def _require_places(found: Manifest) -> None:
    paths, refused = found.table["path"], []
    rows = _rows(pc.invert(pc.match_substring_regex(paths, uris.SOUND)))
    for row, path in zip(rows, paths.take(pa.array(rows, pa.int64())).to_pylist(), strict=True):
        try:
            uris.parts(path)
        except UserError as error:
            refused.append((row, str(error)))
    if refused:
        row, why = refused[0]
        image_id = quoted(redacted(found.image_ids[row]))
        raise UserError(f"{found.uri!r}: row {row + 1} (image_id {image_id}): {why}{_others(len(refused))}")


def _others(count: int) -> str:
    return f"; {count} rows are like it" if count > 1 else ""


def _selectable(column: pa.ChunkedArray) -> bool:
    """Whether Arrow can select rows of such a column; of a string_view, say, it can't."""
    try:
        column.slice(0, 0).filter(pa.array([], pa.bool_()))
    except pa.ArrowNotImplementedError:
        return False
    return True


def with_texts(uri: str, table: pa.Table, names: Iterable[str]) -> pa.Table:
    """`table`, with its columns `names` as strings. Raises UserError as `text` does."""
    for name in names:
        table = table.set_column(table.column_names.index(name), name, text(uri, table, name))
    return table


def text(uri: str, table: pa.Table, name: str) -> pa.ChunkedArray:
    """The column `name` of the table at `uri`, as strings. Raises UserError where it can't be that."""
    try:
        return as_text(table[name])
    except pa.ArrowException as error:
        raise UserError(
            f"{uri!r}: column {name!r} must be text: {files.reason(error)} (its type is {table[name].type})"
            f"{_where_no_text(table[name])}{tables.embedded_photos_hint(table.select([name]))}"
        ) from error


def _where_no_text(column: pa.ChunkedArray) -> str:
    values = column.to_pylist()
    rows = [row for row, value in enumerate(values) if isinstance(value, bytes) and not _is_utf8(value)]
    return f" in row {rows[0] + 1}, {quoted(values[rows[0]])}{_others(len(rows))}" if rows else ""


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _with_boxes(uri: str, table: pa.Table) -> pa.Table:
    present = [name for name in BOX if name in table.column_names]
    if not present:
        return table
    if len(present) < len(BOX):
        raise UserError(f"{uri!r} has {', '.join(present)} but a box needs x1, y1, x2, y2")
    for name in BOX:
        try:
            values = decode_dictionary(table[name]).cast(pa.float64())
        except pa.ArrowException as error:
            raise UserError(f"{uri!r}: column {name} must be numbers: {files.reason(error)}") from error
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)  # pandas' way to leave one out
        table = table.set_column(table.column_names.index(name), name, values)
    empty = pc.or_kleene(pc.less_equal(table["x2"], table["x1"]), pc.less_equal(table["y2"], table["y1"]))
    infinite = functools.reduce(pc.or_kleene, [pc.is_inf(table[name]) for name in BOX])
    missing = [table[name].is_null() for name in BOX]
    partial = pc.and_not(functools.reduce(pc.or_, missing), functools.reduce(pc.and_, missing))
    for wrong, what in (
        (partial, "an incomplete box"),
        (infinite, "a box without end"),
        (empty, "an empty box (x2 ≤ x1 or y2 ≤ y1)"),
    ):
        if (row := _first(wrong)) is not None:
            raise UserError(f"{uri!r}: image_id {quoted(table['image_id'][row].as_py())} has {what}")
    return table


def _first(mask: pa.ChunkedArray) -> int | None:
    rows = _rows(mask)
    return rows[0] if rows else None


def _rows(mask: pa.ChunkedArray) -> list[int]:
    """The rows at which `mask` is true."""
    rows: list[int] = np.flatnonzero(pc.fill_null(mask, False).to_numpy()).tolist()
    return rows
