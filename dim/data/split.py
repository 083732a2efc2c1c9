"""Labelled photos → a manifest with splits train, val and test.

By label, whole labels go to val and test, so that these hold objects never trained on. Per label, a number of photos of
each label go there. Which ones, the order of sha256(seed, name) decides: it is the same for any order of the input, any
machine and any version of this program.
"""

import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from dim import files, tables
from dim.data import manifest, photos
from dim.data.split_config import SplitConfig
from dim.errors import UserError
from dim.rows import require_once

log = logging.getLogger(__name__)


def split(config: SplitConfig) -> dict[str, Any]:
    """Writes the manifest `config.out`, and beside it `<stem>.unreadable.csv` with path, label and reason.

    Raises UserError, before anything is written, for flags that contradict each other or are out of range, a missing
    folder or table, a column that a CSV file can't hold where one is to be written, no photo that can be read, an
    unknown label to ignore, and too few labels.
    """
    _check(config)
    table = _from_folder(config.images) if files.is_folder(config.images) else _from_table(config.images, config.out)
    readable, unreadable, several = _tried(_wanted(table, config), config)
    if several:
        log.info("%d photos hold several frames or pages: the first is taken", several)
    kept = _large_enough(readable, config)
    labels, image_ids = kept["label"].to_pylist(), kept["image_id"].to_pylist()
    if config.val_per_label is None and config.test_per_label is None:
        val, test = _shares(config)
        splits = by_label(labels, val, test, config.seed)
    else:
        splits = per_label(labels, image_ids, config.val_per_label or 0, config.test_per_label or 0, config.seed)
    folder = files.parent(config.out)
    result = manifest.checked(config.out, _named(kept, folder).append_column("split", pa.array(splits, pa.string())))
    files.make_folder(folder)
    tables.write(f"{config.out.rpartition('.')[0]}.unreadable.csv", _named(unreadable, folder))
    tables.write(config.out, result.table)
    require_once(image_ids, manifest.read(config.out).image_ids, repr(config.out))
    counts = Counter(splits)
    return {
        "manifest": config.out,
        "images": len(result),
        "labels": len(set(labels)),
        **{name: counts[name] for name in manifest.SPLITS},
        "unreadable": len(unreadable),
        "several_frames": several,
        "left_out": len(table) - len(unreadable) - len(kept),
    }


def by_label(labels: Sequence[str], val: float, test: float, seed: int) -> list[str]:
    """The split of each photo: the shares `val` and `test` of the labels, rounded, but at least one where not 0."""
    ordered = _ordered(set(labels), seed)
    n_val, n_test = (max(1, round(share * len(ordered))) if share else 0 for share in (val, test))
    if n_val + n_test >= len(ordered):
        raise UserError(
            f"too few labels ({len(ordered)}): {n_val} to val and {n_test} to test leave none to train; "
            "give smaller shares, or --val-per-label and --test-per-label"
        )
    split_of = dict.fromkeys(ordered, "train")
    split_of |= dict.fromkeys(ordered[:n_test], "test") | dict.fromkeys(ordered[n_test : n_test + n_val], "val")
    return [split_of[label] for label in labels]


def per_label(labels: Sequence[str], image_ids: Sequence[str], val: int, test: int, seed: int) -> list[str]:
    """The split of each photo: of each label, `test` photos to test, `val` to val, the rest to train."""
    members: dict[str, list[str]] = {}
    for label, image_id in zip(labels, image_ids, strict=True):
        members.setdefault(label, []).append(image_id)
    split_of = dict.fromkeys(image_ids, "train")
    for ids in members.values():
        ordered = _ordered(ids, seed)
        split_of |= dict.fromkeys(ordered[:test], "test") | dict.fromkeys(ordered[test : test + val], "val")
    return [split_of[image_id] for image_id in image_ids]


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


def _ordered(names: Iterable[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}\n{name}".encode()).digest())


def _shares(config: SplitConfig) -> tuple[float, float]:
    return (
        0.1 if config.val_labels is None else config.val_labels,
        0.2 if config.test_labels is None else config.test_labels,
    )


def _check(config: SplitConfig) -> None:
    if not config.out.endswith(tables.SUFFIXES):
        raise UserError(f"--out {config.out!r} must end in .parquet or .csv")
    if config.out == config.images:
        raise UserError(f"--out {config.out!r} is the table to split; choose another")
    counts = {"--val-per-label": config.val_per_label, "--test-per-label": config.test_per_label}
    shares = {"--val-labels": config.val_labels, "--test-labels": config.test_labels}
    if set(counts.values()) != {None} and set(shares.values()) != {None}:
        raise UserError("give --val-labels and --test-labels, or --val-per-label and --test-per-label, not both kinds")
    for flag, value in shares.items():
        if value is not None and not 0 <= value < 1:
            raise UserError(f"{flag} {value} must be a share of the labels, at least 0 and less than 1")
    if sum(_shares(config)) >= 1:
        raise UserError(f"--val-labels and --test-labels sum to {sum(_shares(config)):g}; leave some for train")
    for flag, count in (counts | {"--min-per-label": config.min_per_label}).items():
        if count is not None and count < 0:
            raise UserError(f"{flag} {count} must not be negative")


def _from_folder(folder: str) -> pa.Table:
    found = photos.listed(folder)
    names = [name for name in found if "/" in name]
    if not names:
        raise UserError(f"{folder!r} has no photo in a sub-folder; it needs one sub-folder per label")
    if len(names) < len(found):
        log.warning("%d files of %r are in no sub-folder, so have no label: skipped", len(found) - len(names), folder)
    return pa.table(
        {
            "image_id": unique_ids(names),
            "path": [files.join(folder, name) for name in names],
            "label": [name.split("/")[0] for name in names],
        }
    )


def _from_table(uri: str, out: str) -> pa.Table:
    if not uri.endswith(tables.SUFFIXES):
        raise UserError(f"no folder {uri!r}; name a folder with one sub-folder per label, or a .parquet or .csv table")
    table = tables.read(uri)
    tables.require_columns(table, ("path", "label"), uri)
    if "image_id" not in table.column_names:
        paths = manifest.text(uri, table, "path").fill_null("").to_pylist()
        table = table.add_column(0, "image_id", pa.array(unique_ids(paths), pa.string()))
    if "split" in table.column_names:
        table = table.drop_columns("split")
    rows = manifest.checked(uri, table)
    table = rows.table.drop_columns("split")
    if out.endswith(".csv"):  # which holds no lists, say: better known now than when there is something to write
        table = manifest.with_texts(uri, table, table.column_names)
    return _with_paths(table, rows.paths)


def _wanted(table: pa.Table, config: SplitConfig) -> pa.Table:
    """The rows whose label is known and not ignored."""
    labels = table["label"].to_pylist()
    for ignored in config.ignore_label:
        if ignored not in labels:
            raise UserError(f"--ignore-label {ignored!r}: no photo of {config.images!r} has this label")
    wanted = set(labels) - {None, *config.ignore_label}
    if not wanted:
        raise UserError(f"{config.images!r} has no label left to split: all are empty or ignored")
    return table.filter(pa.array([label in wanted for label in labels]))


def _tried(table: pa.Table, config: SplitConfig) -> tuple[pa.Table, pa.Table, int]:
    """The rows whose photo decodes; path, label and reason of the others; how many hold several frames or pages."""
    several: list[str] = []

    def check(uri: str) -> None:
        if photos.decodes(uri, config.limits):
            several.append(uri)

    reasons = photos.unreadable(table["path"].to_pylist(), check)
    if len(reasons) == len(table):
        raise UserError(f"none of the {len(table)} photos of {config.images!r} can be read; the first: {reasons[0]}")
    rows = list(reasons)
    unreadable = table.select(["path", "label"]).take(pa.array(rows, pa.int64()))
    unreadable = unreadable.append_column("reason", pa.array(list(reasons.values()), pa.string()))
    return table.filter(pa.array([row not in reasons for row in range(len(table))])), unreadable, len(several)


def _large_enough(table: pa.Table, config: SplitConfig) -> pa.Table:
    """The rows of the labels that have enough photos."""
    needed = (config.val_per_label or 0) + (config.test_per_label or 0) + 1
    least = max(2 if config.min_per_label is None else config.min_per_label, needed)
    labels = table["label"].to_pylist()
    counts = Counter(labels)
    if max(counts.values()) < least:
        raise UserError(f"{config.images!r} has no label left to split: none has {least} photos that can be read")
    return table.filter(pa.array([counts[label] >= least for label in labels]))


def _named(table: pa.Table, folder: str) -> pa.Table:
    return _with_paths(table, photos.named(table["path"].to_pylist(), folder))


def _with_paths(table: pa.Table, paths: list[str]) -> pa.Table:
    return table.set_column(table.column_names.index("path"), "path", pa.array(paths, pa.string()))
