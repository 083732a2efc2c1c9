"""The manifest: a table of photos in Parquet or CSV, with one row per image.

Two columns are required. `image_id` is a unique string. `path` is a local path or a URI (file://, s3:// or gs://; see
`dim.io.uris`). A relative path starts at the manifest's folder. The optional columns are `label` (may be null), `split`
(train, val, test or null), `role` (query, database, or null for both) and `x1, y1, x2, y2` (a query's box in pixels of
the upright image). Other columns are kept.

A text column may hold numbers; `dim.io.tables.as_text` converts them. Empty text, blank text and the number NaN become
null. All other text is kept: "NA", "None" and "nan" are labels.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.app import output_folder, progress
from dim.data import boxes
from dim.data.boxes import true_rows
from dim.errors import UserError, quoted
from dim.io import files, tables, uris

SPLITS = ("train", "val", "test")
ROLES = ("query", "database")
BOX = boxes.BOX
_TEXTS = ("image_id", "path", "label", "split", "role")
# `path` is checked first: split.py makes missing ids from paths, so an id may be missing because its path is missing.
_REQUIRED = ("path", "image_id")
_NEVER_ENCODED = r"^[A-Za-z0-9_.~/-]*$"  # names that are the same in a file:// URI


@dataclass(frozen=True)
class Manifest:
    """A manifest that has been checked. Its `table` always has the columns `label` and `split`.

    `uri` is the manifest's file. Messages name it, and relative paths start at its folder.
    """

    uri: str
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def ids(self) -> pa.ChunkedArray:
        """The ids: strings (N,)."""
        return self.table["image_id"]

    @cached_property
    def uris(self) -> pa.ChunkedArray:
        """The paths or URIs of the photos, resolved against the manifest's folder: strings (N,)."""
        folder = files.parent(files.absolute(self.uri))  # a worker may run in another working directory
        names = self.table["path"]
        if folder.startswith(uris.FILE):
            names = _replaced(names, pc.invert(pc.match_substring_regex(names, _NEVER_ENCODED)), uris.encoded)
        # `files.join` does the same to a single path.
        whole = pc.or_(pc.match_substring(self.table["path"], "://"), pc.starts_with(self.table["path"], "/"))
        joined = pc.binary_join_element_wise(files.join(folder, "").removesuffix("/"), names, "/")
        return pc.if_else(whole, self.table["path"], joined)

    @cached_property
    def box_lists(self) -> pa.Array:
        """The boxes [x1, y1, x2, y2] in pixels, or null for a row without a box: lists of float64 (N,)."""
        return boxes.lists(self.table)

    def codes(self, column: str) -> np.ndarray:
        """Numbers the values of `column` from 0, in the order in which they first occur: int32 (N,); −1 is null."""
        encoded = self.table[column].dictionary_encode().unify_dictionaries()
        parts = [chunk.indices.fill_null(-1).to_numpy() for chunk in encoded.chunks]
        return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32, copy=False)

    # The following are Python objects, for callers that have few rows.

    @cached_property
    def image_ids(self) -> np.ndarray:
        """The ids: an object array of str, shape (N,)."""
        return np.array(self.ids.to_pylist(), dtype=object)

    @cached_property
    def labels(self) -> np.ndarray:
        """The labels: an object array of str or None, shape (N,)."""
        return np.array(self.table["label"].to_pylist(), dtype=object)

    @cached_property
    def paths(self) -> list[str]:
        """The N paths or URIs of the photos, resolved against the manifest's folder."""
        found: list[str] = self.uris.to_pylist()
        return found

    @cached_property
    def boxes(self) -> list[tuple[float, float, float, float] | None]:
        """The N boxes (x1, y1, x2, y2) in pixels; None for a row without a box."""
        return [box and tuple(box) for box in self.box_lists.to_pylist()]

    def select(self, split: str | None = None, role: str | None = None) -> "Manifest":
        """Selects the rows of `split` (None: all) that may have `role` (None: any). Raises UserError if no row does."""
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
        """Yields the splits that have rows, in the order train, val, test."""
        present = set(self.table["split"].unique().to_pylist())
        return (split for split in SPLITS if split in present)


def read(uri: str) -> Manifest:
    """Reads and checks the manifest at `uri`. Opens no photo, so a photo may still be missing.

    Raises:
        UserError: The file is missing, has no row, or lacks a required column; a column has an unusable type; an
            image_id is empty or repeated; a path is empty or names no place that dim reads; a split or role is unknown;
            a box is incomplete, infinite or empty; or the import that writes the file has not finished.
    """
    with progress.step(f"reading {uri!r}"):
        require_imported(uri)
        found = checked(uri, tables.read(uri))
        _require_places(found)
        return found


def require_imported(uri: str) -> None:
    """Raises UserError if the import that writes the table at `uri` has not finished: other tables there may be older.

    Whether the table has changed since the import is not checked, because a user may edit the table.
    """
    folder = files.parent(uri)
    record = output_folder.record_of(folder) if files.exists(uri) else None
    if record is not None and record["job"] == "import":
        output_folder.finished_record(folder)


def checked(uri: str, table: pa.Table) -> Manifest:
    """Returns `table` as the checked manifest at `uri`. Raises UserError as `read` does, but not for unknown places."""
    tables.require_columns(table, _REQUIRED, uri)
    for name in ("label", "split"):
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
    texts = [name for name in table.column_names if name in _TEXTS or not _selectable(table[name])]
    table = with_text_columns(uri, table, texts)
    for name in texts:
        if name in _TEXTS:
            table = table.set_column(table.column_names.index(name), name, tables.empty_as_null(table[name]))
    if table.num_rows == 0:
        raise UserError(f"{uri!r} has no row")
    _require_ids(uri, table)
    for name, allowed in (("split", SPLITS), ("role", ROLES)):
        present = table[name].unique().to_pylist() if name in table.column_names else []
        if unknown := {*present} - {None, *allowed}:
            raise UserError(
                f"{uri!r}: unknown {name} {quoted(min(unknown))}; use {', '.join(allowed)} or leave it empty"
            )
    return Manifest(uri, boxes.checked(uri, table))


def with_text_columns(uri: str, table: pa.Table, names: Iterable[str]) -> pa.Table:
    """Returns `table` with the columns `names` converted to strings. Raises UserError as `text_column` does."""
    for name in names:
        table = table.set_column(table.column_names.index(name), name, text_column(uri, table, name))
    return table


def text_column(uri: str, table: pa.Table, name: str) -> pa.ChunkedArray:
    """Returns the column `name` of the table at `uri` as strings. Raises UserError if a value cannot be converted."""
    try:
        return tables.as_text(table[name])
    except pa.ArrowException as error:
        raise UserError(
            f"{uri!r}: column {name!r} must be text: {files.reason(error)} (its type is {table[name].type})"
            f"{_undecodable_rows(table[name])}{tables.embedded_photos_hint(table.select([name]))}"
        ) from error


def _undecodable_rows(column: pa.ChunkedArray) -> str:
    """Returns a part of a message, which names the first row whose bytes are not UTF-8; "" if there is none."""
    values = column.to_pylist()
    wrong = [isinstance(value, bytes) and value.decode(errors="ignore").encode() != value for value in values]
    rows = np.flatnonzero(wrong)
    return f" in row {rows[0] + 1}, {quoted(values[rows[0]])}{_others(len(rows))}" if len(rows) else ""


def _selectable(column: pa.ChunkedArray) -> bool:
    """Returns whether Arrow can filter this type of column. It cannot filter a string_view, for example."""
    try:
        column.slice(0, 0).filter(pa.array([], pa.bool_()))
    except pa.ArrowNotImplementedError:
        return False
    return True


def _require_ids(uri: str, table: pa.Table) -> None:
    for name in _REQUIRED:
        if missing := true_rows(table[name].is_null()):
            raise UserError(f"{uri!r}: row {missing[0] + 1} has no {name}")
        if broken := true_rows(pc.match_substring(table[name], "\0")):
            raise UserError(f"{uri!r}: row {broken[0] + 1} has a NUL in its {name}{_others(len(broken))}")
    if pc.count_distinct(table["image_id"]).as_py() < len(table):
        counts = table["image_id"].value_counts()
        repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        raise UserError(
            f"{uri!r}: image_id {quoted(repeated[0].as_py())} occurs more than once ({len(repeated)} such ids)"
        )


def _require_places(found: Manifest) -> None:
    """Raises UserError if a path names no place that dim can read. Does not access storage."""
    paths, refused = found.table["path"], []
    rows = true_rows(pc.invert(pc.match_substring_regex(paths, uris.SOUND)))
    for row, path in zip(rows, paths.take(pa.array(rows, pa.int64())).to_pylist(), strict=True):
        try:
            uris.parts(path)
        except UserError as error:
            refused.append((row, str(error)))
    if refused:
        row, why = refused[0]
        image_id = quoted(uris.redacted(found.ids[row].as_py()))
        raise UserError(f"{found.uri!r}: row {row + 1} (image_id {image_id}): {why}{_others(len(refused))}")


def _replaced(texts: pa.ChunkedArray, mask: pa.ChunkedArray, change: Callable[[str], str]) -> pa.ChunkedArray:
    """Returns `texts` with change(text) in place of each text for which `mask` is true."""
    changed = pa.array(map(change, texts.filter(mask).to_pylist()), pa.string())
    return pc.replace_with_mask(texts, mask.combine_chunks(), changed) if len(changed) else texts


def _others(count: int) -> str:
    return f"; {count} such rows" if count > 1 else ""
