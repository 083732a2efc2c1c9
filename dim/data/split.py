"""The job split.py: labelled photos → a manifest with the splits train, val and test.

If the top folders of a tree are splits, these splits are kept. Otherwise there are two ways to split. By label, all
photos of some labels go to val or test, so that val and test measure retrieval of objects that training never saw. Per
label, some photos of each label go to val and test. The order of sha256(seed, name) decides which labels or photos go
there. So the split is the same on any machine and for any order of the input.

Before that, each photo is decoded once: in the tasks of a cluster, or in processes of this machine.
"""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from dim.app import cluster, tasks
from dim.app.progress import Progress
from dim.data import isolated, labelled, manifest, photos
from dim.data.config import SplitConfig
from dim.data.limits import DecodeError, Limits
from dim.data.prefetch import prefetch, ranges
from dim.errors import UserError, count_reasons
from dim.io import csv_files, files, local_copies, tables

log = logging.getLogger(__name__)

# There are _UNITS tasks, or more if tasks would get too many photos. A task checks at least _FEWEST.
_FEWEST, _UNITS = 4, 64


def split(config: SplitConfig) -> dict[str, Any]:
    """Runs the job split.py, which splits labelled photos.

    Writes the manifest `config.out`, and beside it `<stem>.unreadable.csv` with the path, label and reason of each file
    that was not used. Returns what the job prints as its last line.

    Raises:
        UserError: Flags are out of range or contradict each other; the folder or table is missing; a CSV output cannot
            hold a column; no photo can be read; a label to ignore is unknown; or there are too few labels. Then
            nothing is written.
    """
    _check(config)
    if files.is_folder(config.images):
        table, skipped, hidden = labelled.from_folder(config)
    else:
        table, skipped, hidden = labelled.from_table(config), labelled.rejected([], [], []), 0
    readable, unreadable, several = _decodable(_with_label(table, config), config)
    if several:
        log.info("%d photos hold several frames or pages; the first is used", several)
    kept = _large_enough(readable, config)
    labels, image_ids = kept["label"].to_pylist(), kept["image_id"].to_pylist()
    if "split" not in kept.column_names:
        kept = kept.append_column("split", pa.array(_splits(labels, image_ids, config), pa.string()))
    splits = kept["split"].to_pylist()
    labelled.warn_about_labels(labels)
    spread = Counter(label for label, _ in set(zip(labels, splits, strict=True)))
    log.info("labels in more than one split: %d of %d", sum(n > 1 for n in spread.values()), len(spread))
    _write(config.out, kept, unreadable, skipped)
    left_out = len(table) - len(unreadable) - len(kept)
    if left_out:
        log.info("left out: %d photos, whose label is missing, ignored or has too few photos", left_out)
    counts = Counter(splits)
    return {
        "manifest": config.out,
        "images": len(kept),
        "labels": len(set(labels)),
        **{name: counts[name] for name in manifest.SPLITS},
        "unreadable": len(unreadable),
        "several_frames": several,
        "left_out": left_out,
        "skipped": len(skipped),
        "hidden": hidden,
    }


def _check(config: SplitConfig) -> None:
    if not config.out.endswith(tables.SUFFIXES):
        raise UserError(f"--out {config.out!r} must end in .parquet or .csv")
    if files.locate(config.out) == files.locate(config.images):
        raise UserError(f"--out {config.out!r} is the table to split; choose another")
    counts = {"--val-per-label": config.val_per_label, "--test-per-label": config.test_per_label}
    shares = {"--val-labels": config.val_labels, "--test-labels": config.test_labels}
    if set(counts.values()) != {None} and set(shares.values()) != {None}:
        raise UserError("give --val-labels and --test-labels, or --val-per-label and --test-per-label, not both kinds")
    for flag, value in shares.items():
        if value is not None and not 0 <= value < 1:
            raise UserError(f"{flag} is a share of the labels and must be at least 0 and below 1, not {value}")
    if sum(_shares(config)) >= 1:
        raise UserError(f"--val-labels and --test-labels sum to {sum(_shares(config)):g}; leave some for train")
    for flag, count in (counts | {"--min-per-label": config.min_per_label}).items():
        if count is not None and count < 0:
            raise UserError(f"{flag} must be at least 0, not {count}")


def _shares(config: SplitConfig) -> tuple[float, float]:
    val, test = config.val_labels, config.test_labels
    return 0.1 if val is None else val, 0.2 if test is None else test


def _with_label(table: pa.Table, config: SplitConfig) -> pa.Table:
    """Selects the rows that have a label, except rows whose label is to be ignored."""
    labels = table["label"].to_pylist()
    for ignored in config.ignore_label:
        if ignored not in labels:
            raise UserError(f"--ignore-label {ignored!r}: no photo of {config.images!r} has this label")
    wanted = set(labels) - {None, *config.ignore_label}
    if not wanted:
        raise UserError(f"{config.images!r} has no label left to split: all are empty or ignored")
    return table.filter(pa.array([label in wanted for label in labels]))


def _decodable(table: pa.Table, config: SplitConfig) -> tuple[pa.Table, pa.Table, int]:
    """Returns the rows whose photo decodes, a table of the others, and the number of photos with several frames."""
    uris = table["path"].to_pylist()
    reasons = {row: why for row, uri in enumerate(uris) if (why := _location_error(uri))}
    others = [row for row in range(len(uris)) if row not in reasons]
    several = 0
    with cluster.joined():
        if not cluster.is_local():
            cluster.require_shared(uris[row] for row in others)
        progress = Progress("checking", len(others), errors=True)
        for rows, (failed, found) in _checked(uris, others, config.limits):
            reasons |= {rows[place]: why + _hint(uris[rows[place]], why) for place, why in failed.items()}
            several += found
            progress.add(len(rows), errors=len(failed))
    lost_rows = sorted(reasons)
    if len(lost_rows) == len(table):
        raise UserError(
            f"none of the {len(table)} photos of {config.images!r} can be read; the first: {reasons[0]} ({uris[0]!r})"
        )
    lost = table.take(pa.array(lost_rows, pa.int64()))
    unreadable = labelled.rejected(lost["path"], lost["label"], [reasons[row] for row in lost_rows])
    return table.filter(pa.array([row not in reasons for row in range(len(table))])), unreadable, several


def _checked(
    uris: Sequence[str], rows: Sequence[int], limits: Limits
) -> Iterator[tuple[Sequence[int], tuple[dict[int, str], int]]]:
    """Checks the photos `rows` of `uris`. Yields the rows of each unit of work, and what `_undecodable` returns."""
    paths = pa.chunked_array([[uris[row] for row in rows]], pa.string())
    parts = [rows[begin:end] for begin, end in ranges(paths, max(_FEWEST, len(rows) // _UNITS))]
    # A task may run in another working folder.
    units = [[files.absolute(uris[row]) for row in part] for part in parts]
    for position, found in tasks.spread(_undecodable, units, (limits,)):
        yield parts[position], found


def _undecodable(uris: Sequence[str], limits: Limits) -> tuple[dict[int, str], int]:
    """Decodes photos in separate processes, which a photo may kill. Returns position → reason for those that fail.

    Also returns how many of the others hold several frames or pages.
    """
    failed, several = {}, 0
    for photo in prefetch(uris):
        try:
            several += isolated.decode(photo.read(), 32, "squash", limits=limits).several
        except (DecodeError, OSError) as error:
            failed[photo.position] = photos.reason(error)
    return failed, several


def _location_error(uri: str) -> str | None:
    """Returns why `uri` names no place, or None if it does. Such a row is rejected, but the others are used."""
    try:
        files.locate(uri)
    except UserError as error:
        return str(error)
    return None


def _hint(uri: str, reason: str) -> str:
    windows = reason == photos.MISSING and re.search(r"\\|(^|/)[A-Za-z]:/", uri)
    return "; it looks like a Windows path: write it as it is on this machine, with /" if windows else ""


def _large_enough(table: pa.Table, config: SplitConfig) -> pa.Table:
    """Selects the rows whose label has enough photos."""
    needed = (config.val_per_label or 0) + (config.test_per_label or 0) + 1
    least = max(2 if config.min_per_label is None else config.min_per_label, needed)
    labels = table["label"].to_pylist()
    counts = Counter(labels)
    if max(counts.values()) < least:
        raise UserError(f"{config.images!r} has no label left to split: none has {least} photos that can be read")
    return table.filter(pa.array([counts[label] >= least for label in labels]))


def _splits(labels: list[str], image_ids: list[str], config: SplitConfig) -> list[str]:
    if config.val_per_label is None and config.test_per_label is None:
        return by_label(labels, *_shares(config), config.seed)
    return per_label(labels, image_ids, config.val_per_label or 0, config.test_per_label or 0, config.seed)


def by_label(labels: Sequence[str], val: float, test: float, seed: int) -> list[str]:
    """Assigns the share `val` of the labels to val, `test` to test and the rest to train. Returns each photo's split.

    A share above 0 is rounded to whole labels, at least one. Raises UserError if no label is left to train.
    """
    names = set(labels)
    n_val, n_test = (max(1, round(share * len(names))) if share else 0 for share in (val, test))
    if n_val + n_test >= len(names):
        raise UserError(
            f"too few labels ({len(names)}): {n_val} to val and {n_test} to test leave none to train; "
            "give smaller shares, or --val-per-label and --test-per-label"
        )
    split_of = _split_of(names, n_val, n_test, seed)
    return [split_of[label] for label in labels]


def per_label(labels: Sequence[str], image_ids: Sequence[str], val: int, test: int, seed: int) -> list[str]:
    """Assigns `val` photos of each label to val, `test` to test and the rest to train. Returns each photo's split."""
    members: dict[str, list[str]] = {}
    for label, image_id in zip(labels, image_ids, strict=True):
        members.setdefault(label, []).append(image_id)
    split_of: dict[str, str] = {}
    for ids in members.values():
        split_of |= _split_of(ids, val, test, seed)
    return [split_of[image_id] for image_id in image_ids]


def _split_of(names: Iterable[str], val: int, test: int, seed: int) -> dict[str, str]:
    """Sorts the names by hash. Maps the first `test` names to test, the next `val` to val and the rest to train."""
    ordered = sorted(names, key=lambda name: hashlib.sha256(f"{seed}\n{name}".encode()).digest())
    to_test, to_val = ordered[:test], ordered[test : test + val]
    return dict.fromkeys(ordered, "train") | dict.fromkeys(to_test, "test") | dict.fromkeys(to_val, "val")


def _write(out: str, kept: pa.Table, unreadable: pa.Table, skipped: pa.Table) -> None:
    """Writes the manifest of `kept`, and the list of `unreadable` and `skipped` files. Logs how many files it lists."""
    folder = files.parent(out)
    result = manifest.checked(out, _named(kept, folder))
    files.make_folder(folder)
    # An old list is deleted first, so that it never lies beside a new manifest.
    beside = f"{out.rpartition('.')[0]}.unreadable.csv"
    for uri in (out, beside):
        local_copies.sweep(folder, files.name(uri))
    files.delete(beside)
    tables.write(out, result.table)
    csv_files.write_escaped(beside, _named(pa.concat_tables([unreadable, skipped]), folder))
    for what, rows in (("photos that could not be read", unreadable), ("other files that were skipped", skipped)):
        if len(rows):
            log.warning("%s: %d (%s); see %s", what, len(rows), count_reasons(rows["reason"].to_pylist()), beside)
    tables.require_each_once(kept["image_id"].to_pylist(), manifest.read(out).image_ids, repr(out))


def _named(table: pa.Table, folder: str) -> pa.Table:
    return labelled.with_paths(table, photos.manifest_paths(table["path"].to_pylist(), folder))
