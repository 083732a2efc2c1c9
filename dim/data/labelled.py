"""Reads the labelled photos for split.py, from a tree of folders (`from_folder`) or from a table (`from_table`).

In a tree, a photo's label is the folder that holds it, and top folders named train, val and test are the splits.
`warn_about_labels` reports labels that are probably mistakes, such as two labels that look alike.
"""

import itertools
import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from dim.app.config import flag_name
from dim.data import manifest
from dim.data.config import SplitConfig
from dim.data.photos import list_folder
from dim.errors import UserError, quoted
from dim.io import files, tables

log = logging.getLogger(__name__)

_SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
# What programs write in place of a missing value, in lower case.
_MISSING = {"nan", "none", "null", "na", "n/a", "nat", "<na>", "nil", "#n/a"}
_MOST = 5  # examples that a warning gives at most


def from_folder(config: SplitConfig) -> tuple[pa.Table, pa.Table, int]:
    """Returns the labelled photos below `config.images`, the skipped files, and the number of hidden files and folders.

    The labelled photos have the columns image_id, path and label, and the column split if the top folders are splits.
    `rejected` describes the table of skipped files. Raises UserError if no photo has a label, if the folder holds
    tables, or if the top folders are splits and a flag asks for other splits.
    """
    folder, found = config.images, list_folder(config.images)
    labels, splits = labels_and_splits(found.files, folder)
    rows = [row for row, label in enumerate(labels) if label is not None]
    _require_no_tables(folder, [found.files[row] for row in rows] or found.files)
    if not rows:
        below = "a sub-folder" if splits is None else "a sub-folder of its splits"
        raise UserError(f"{folder!r} has no photo in {below}; it needs one sub-folder per label")
    names, known = [found.files[row] for row in rows], [label for label in labels if label is not None]
    columns = {"image_id": unique_ids(names), "path": [files.join(folder, name) for name in names], "label": known}
    if splits is not None:
        _require_no_shares(config)
        columns["split"] = [splits[row] for row in rows]
        log.info("the top folders of %r are the splits", folder)
    if deepest := max((label for label in known if "/" in label), default=None):
        log.info("a label is the path of the folder that holds its photos, such as %r", deepest)
    loose = [name for name, label in zip(found.files, labels, strict=True) if label is None]
    skipped = dict.fromkeys(loose, "it is not in the folder of a label") | found.skipped
    others = rejected([files.join(folder, name) for name in skipped], [None] * len(skipped), skipped.values())
    return pa.table(columns), others, found.hidden


def _require_no_tables(folder: str, names: Sequence[str]) -> None:
    """Raises UserError if all files are tables, apart from files such as _SUCCESS that programs write beside them."""
    parts = [name for name in names if tables.is_table(name)]
    if parts and all(name.rpartition("/")[2].startswith("_") for name in {*names} - {*parts}):
        raise UserError(f"{folder!r} holds tables ({parts[0]!r}), not photos; {tables.ONE_TABLE}")


def _require_no_shares(config: SplitConfig) -> None:
    for name in ("val_labels", "test_labels", "val_per_label", "test_per_label"):
        if (value := getattr(config, name)) is not None:
            raise UserError(
                f"{flag_name(name)} {value}: the top folders of {config.images!r} are splits already; leave the flag "
                "out, or give a table with path and label, which is split anew"
            )


def labels_and_splits(names: Sequence[str], where: str) -> tuple[list[str | None], list[str] | None]:
    """Returns the labels and the splits of photos. `names` are the photos' paths relative to the folder `where`.

    The label of a photo is None if no label's folder holds it. If all top folders are named train, val (validation,
    valid) or test, in upper or lower case, they are the splits and not part of the labels. Otherwise the splits are
    None. Raises UserError if folders that are named like different splits would become parts of labels.
    """
    folders = [name.split("/")[:-1] for name in names]
    tops = {folder[0] for folder in folders if folder}
    of_splits = {top for top in tops if top.lower() in _SPLITS}
    if of_splits != tops:
        _require_no_splits(folders, where)
        return list(map(_label, folders)), None
    below = [folder[1:] for folder in folders]
    _require_no_splits(below, where)
    splits = [_SPLITS[folder[0].lower()] if folder else "" for folder in folders]
    return list(map(_label, below)), splits if tops else None


def _label(folder: list[str]) -> str | None:
    label = "/".join(folder)
    return label if label.strip() else None  # a manifest reads a blank label as null


def _require_no_splits(folders: Sequence[list[str]], where: str) -> None:
    """Raises UserError if folders such as train and test are side by side in `folders`, which become labels."""
    within: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for parts in {tuple(folder) for folder in folders}:
        for depth, part in enumerate(parts):
            within[parts[:depth]].add(part)
    for parent, children in sorted(within.items()):
        of_splits = sorted(child for child in children if child.lower() in _SPLITS)
        if len({_SPLITS[child.lower()] for child in of_splits}) < 2:
            continue
        inner = "/".join(parent)
        others = sorted(children - {*of_splits})
        beside = f"beside {others[0]!r}" if others else f"within {inner!r}" if inner else "within a split"
        instead = (
            f"name {where.rstrip('/')}/{inner}"
            if parent and len(within[()]) == 1
            else "make them the only folders at its top"
        )
        raise UserError(
            f"{where!r} has folders {' and '.join(of_splits)} {beside}, where they would be parts of labels; if they "
            f"are splits, {instead}; else give a table with path and label"
        )


def from_table(config: SplitConfig) -> pa.Table:
    """Returns the table `config.images` with full paths, with the column image_id, and without the column split.

    Raises UserError if the table is missing, is not a valid manifest, or has a column that the output cannot hold.
    """
    uri = config.images
    if not tables.is_table(uri) and not files.exists(uri):
        raise UserError(f"no folder {uri!r}; name a folder with one sub-folder per label, or a .parquet or .csv table")
    table = tables.read(uri)
    tables.require_columns(table, ("path", "label"), uri)
    if "image_id" not in table.column_names:
        paths = manifest.text_column(uri, table, "path").fill_null("").to_pylist()
        table = table.add_column(0, "image_id", pa.array(unique_ids(paths), pa.string()))
    if "split" in table.column_names:
        table = table.drop_columns("split")
    rows = manifest.checked(uri, table)
    table = rows.table.drop_columns("split")
    if config.out.endswith(".csv"):  # CSV cannot hold lists, for example; refuse them before the work begins
        table = manifest.with_text_columns(uri, table, table.column_names)
    return with_paths(table, rows.paths)


def unique_ids(paths: Sequence[str]) -> list[str]:
    """Returns an id for each path. The ids do not depend on the order of the paths.

    An id is the path without suffix. If that is taken, it is the whole path. If both are taken, a number is added.
    """
    ids: dict[int, str] = {}
    taken: set[str] = set()
    for row in sorted(range(len(paths)), key=lambda row: paths[row]):
        path = paths[row]
        folder, slash, name = path.rpartition("/")
        stem = name.rpartition(".")[0] or name
        candidates = itertools.chain([folder + slash + stem, path], (f"{path}#{n}" for n in itertools.count(2)))
        ids[row] = next(name for name in candidates if name not in taken)
        taken.add(ids[row])
    return [ids[row] for row in range(len(paths))]


def rejected(paths: Any, labels: Any, reasons: Iterable[str]) -> pa.Table:
    """Makes a table of the files that were not used, with the columns path, label and reason."""
    columns = {"path": paths, "label": labels, "reason": list(reasons)}
    return pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns]))


def with_paths(table: pa.Table, paths: list[str]) -> pa.Table:
    """Returns `table` with its column `path` replaced by `paths`."""
    return table.set_column(table.column_names.index("path"), "path", pa.array(paths, pa.string()))


def warn_about_labels(labels: Sequence[str]) -> None:
    """Warns about labels that look alike ('a' and 'a '), are nested ('a' and 'a/b'), or look missing ('nan')."""
    counts = Counter(labels)
    groups: dict[str, list[str]] = defaultdict(list)
    for label in sorted(counts):
        groups[_as_seen(label)].append(label)
    _warn("labels that look alike are kept apart", [group for group in groups.values() if len(group) > 1], counts)
    nested = [[label.rpartition("/")[0], label] for label in sorted(counts) if label.rpartition("/")[0] in counts]
    _warn("nested labels are kept apart", nested, counts)
    missing = [[label] for label in counts if label.strip().lower() in _MISSING]
    _warn("labels that look like missing values", missing, counts)


def _warn(what: str, groups: list[list[str]], counts: Counter[str]) -> None:
    if groups:
        examples = [
            " and ".join(f"{quoted(label)} ({counts[label]} photos)" for label in group) for group in groups[:_MOST]
        ]
        more = f"; and {len(groups) - _MOST} more" if len(groups) > _MOST else ""
        log.warning("%s: %s%s", what, "; ".join(examples), more)


def _as_seen(label: str) -> str:
    """Returns a text that is the same for labels that look alike, such as 'Cat' and 'cat ', or '3' and '3.0'."""
    visible = "".join(letter for letter in label if unicodedata.category(letter) != "Cf")
    text = " ".join(unicodedata.normalize("NFKC", visible).casefold().split())
    return re.sub(r"^(\d+)\.0+$", r"\1", text)
