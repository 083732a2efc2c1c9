"""What the folders of a tree of photos say: the label of each photo, and its split; and labels that look alike.

Labelled photos as split.py is given them: a folder of folders, or a table.
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
from dim.data.photos import listing
from dim.errors import UserError, quoted
from dim.io import files, tables

log = logging.getLogger(__name__)

_SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
# What a program writes where it knows no label.
_NOTHING = {"nan", "none", "null", "na", "n/a", "nat", "<na>", "nil", "#n/a"}
_MOST = 5


def of_folders(names: Sequence[str], where: str) -> tuple[list[str | None], list[str] | None]:
    """The label of each photo, and its split or None, by `names`, the paths of photos within the folder `where`.

    A photo's label is the folder that holds it. Where all top folders are named train, val (validation, valid) or test,
    in any case, they are the splits and no part of labels; None where the tree has no splits. A photo that lies in no
    folder of a label has the label None. Raises UserError where folders named so would be parts of labels.
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
    return label if label.strip() else None  # of spaces only, a manifest has it as none


def _require_no_splits(folders: Sequence[list[str]], where: str) -> None:
    """Raises UserError where train and test, say, stand side by side in `folders`, which are to be labels."""
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
        beside = f"beside {others[0]!r}" if others else f"within {inner or 'such'!r}"
        instead = (
            f"name {where.rstrip('/')}/{inner}"
            if parent and len(within[()]) == 1
            else "let them, and no others, be the folders at its top"
        )
        raise UserError(
            f"{where!r} has folders {' and '.join(of_splits)} {beside}, where they would be parts of labels; if they "
            f"are splits, {instead}; else give a table with path and label"
        )


def tell(labels: Sequence[str]) -> None:
    """Warns of different `labels` that look alike, as 'a' and 'a ', of folders within one that is a label, too, and of
    labels that say that there is none.
    """
    counts = Counter(labels)
    groups: dict[str, list[str]] = defaultdict(list)
    for label in sorted(counts):
        groups[_seen(label)].append(label)
    _warn("labels that look alike stay apart", [group for group in groups.values() if len(group) > 1], counts)
    within = [[label.rpartition("/")[0], label] for label in sorted(counts) if label.rpartition("/")[0] in counts]
    _warn("labels within labels are labels of their own", within, counts)
    _warn("labels that look like none", [[label] for label in counts if label.strip().lower() in _NOTHING], counts)


def _warn(what: str, groups: list[list[str]], counts: Counter[str]) -> None:
    if groups:
        told = [
            " and ".join(f"{quoted(label)} ({counts[label]} photos)" for label in group) for group in groups[:_MOST]
        ]
        more = f"; and {len(groups) - _MOST} more" if len(groups) > _MOST else ""
        log.warning("%s: %s%s", what, "; ".join(told), more)


def _seen(label: str) -> str:
    """What a person sees of `label`: no case, no spaces around, nothing invisible, one Unicode form, 3 for 3.0."""
    visible = "".join(letter for letter in label if unicodedata.category(letter) != "Cf")
    text = " ".join(unicodedata.normalize("NFKC", visible).casefold().split())
    return re.sub(r"^(\d+)\.0+$", r"\1", text)


def of_folder(config: SplitConfig) -> tuple[pa.Table, pa.Table, int]:
    """The photos that have a label (with their split where the top folders say it), the `untaken` rest, and the number
    of hidden files and folders.

    Raises UserError where there is no such photo, the folder holds tables, or flags ask for another split than its own.
    """
    folder, found = config.images, listing(config.images)
    labels, splits = of_folders(found.files, folder)
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
        log.info("a label is the folder that holds its photos, such as %r", deepest)
    loose = [name for name, label in zip(found.files, labels, strict=True) if label is None]
    skipped = dict.fromkeys(loose, "it is in no label's folder") | found.skipped
    seen = untaken([files.join(folder, name) for name in skipped], [None] * len(skipped), skipped.values())
    return pa.table(columns), seen, found.hidden


def _require_no_tables(folder: str, names: Sequence[str]) -> None:
    """Raises UserError where all files but those that a program leaves beside its tables, as _SUCCESS, are tables."""
    parts = [name for name in names if tables.is_table(name)]
    if parts and not any(name.rpartition("/")[2][0] != "_" for name in {*names} - {*parts}):
        raise UserError(f"{folder!r} holds tables ({parts[0]!r}), not photos; {tables.ONE_TABLE}")


def _require_no_shares(config: SplitConfig) -> None:
    for name in ("val_labels", "test_labels", "val_per_label", "test_per_label"):
        if (value := getattr(config, name)) is not None:
            raise UserError(
                f"{flag_name(name)} {value}: the top folders of {config.images!r} are splits already; leave the flag "
                "out, or give a table with path and label, which is split anew"
            )


def of_table(config: SplitConfig) -> pa.Table:
    """The rows of the table `config.images`, their paths made full; its column `split` is left out.

    Raises UserError where it is missing or no manifest but for ids and splits, or has what the output can't hold.
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
    if config.out.endswith(".csv"):  # which holds no lists, say: better known now than when there is something to write
        table = manifest.with_text_columns(uri, table, table.column_names)
    return with_paths(table, rows.paths)


def unique_ids(paths: Sequence[str]) -> list[str]:
    """An id for each path: without its ending; with it where two would share an id; a repeated path gets a number."""
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


def untaken(paths: Any, labels: Any, reasons: Iterable[str]) -> pa.Table:
    """A table of what was seen and not taken: path, label and reason."""
    columns = {"path": paths, "label": labels, "reason": list(reasons)}
    return pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns]))


def with_paths(table: pa.Table, paths: list[str]) -> pa.Table:
    """`table` with other `paths`."""
    return table.set_column(table.column_names.index("path"), "path", pa.array(paths, pa.string()))
