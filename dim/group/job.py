"""What group.py does: finds groups of photos that show the same thing, and copies, and writes tables and a page."""

import logging
from typing import Any

import numpy as np
import pyarrow as pa

from dim.app import cluster, output_folder
from dim.app.output_folder import Output
from dim.app.progress import step
from dim.data import manifest as manifests
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.extract import identity
from dim.group import corrections, duplicates, neighbours, tables, threshold
from dim.group.components import Grouper, Grouping, members, rows_within
from dim.group.config import GroupConfig
from dim.group.neighbours import Neighbours
from dim.io import csv_files, strict_json
from dim.io import tables as files_of_tables
from dim.report import group as group_report
from dim.search import descriptor_folder, exact, read_index
from dim.search.database import Exact
from dim.search.descriptor_folder import DescriptorFolder
from dim.search.exact_scores import scores_of_pairs
from dim.search.read_index import SearchTarget

_SLACK = 0.05  # how much too low the score of an index may be

log = logging.getLogger(__name__)


def group(config: GroupConfig) -> dict[str, Any]:
    """Writes groups.parquet, a labelled manifest, duplicates.csv, curve.csv and report.html to `config.out`.

    Returns the job's result. Raises UserError, before any file is written, if a row of the manifest is missing in
    `config.descriptors`, if fewer than two photos have a descriptor, if the whitening or the index doesn't fit the
    descriptors, or if a correction is on another photo or contradicts another one.
    """
    chosen = manifests.read(config.manifest).select(config.split)
    if config.root:
        identity.require_under(config.root, chosen)
    rows = descriptor_folder.read(config.descriptors, config.whitening, chosen, hashed=True)
    if len(rows) < 2:
        raise UserError(f"{config.descriptors!r} has a descriptor of {len(rows)} photo; grouping needs at least two")
    corrected = corrections.read(config.corrections, rows.ids) if config.corrections else corrections.none()
    names = ("manifest", "descriptors", "whitening", "index", "corrections")
    inputs = {name: getattr(config, name) for name in names}
    with cluster.joined():
        target = _target(config, rows)
        with output_folder.opened(config.out, "group", config, inputs, rows.embedding.as_json()) as out:
            database = Exact(rows.parts, exact.tie_order_of(rows.ids), workers=config.workers)
            lists = _neighbours(config, rows, database, target, out)
            slack = _SLACK if target and not isinstance(target.database, Exact) else 0.0
            most_rows = rows_within(config.budget.share, rows.dimension)
            grouper = Grouper(database, lists, slack, corrected, most_rows)
            return _written(config, chosen, rows, grouper, out)


def _target(config: GroupConfig, rows: DescriptorFolder) -> SearchTarget | None:
    """The index in which neighbours are searched, if any."""
    if config.index is None:
        return None
    target = read_index.read(config.index, config.whitening, config.parameters)
    identity.require_equal(target.embedding, config.index, rows.embedding, config.descriptors)
    return target


def _neighbours(
    config: GroupConfig, rows: DescriptorFolder, database: Exact, target: SearchTarget | None, out: Output
) -> Neighbours:
    """The neighbours of all photos. They are written for the next run."""
    made_by = strict_json.dumps({"embedding": rows.embedding.as_json(), "exact": target is None})
    hashes = neighbours.fingerprints(database)
    kept = neighbours.kept(out.folder, made_by, rows.ids, hashes, min(config.neighbours, len(rows) - 1))
    if target is None:
        found = neighbours.by_comparison(database, kept)
    else:
        found = neighbours.by_index(database, target, rows.ids, kept)
        if kept.known.any():
            log.warning(
                "%d photos keep the neighbours of the run before, and only new photos are searched for in the index: "
                "a group may differ from that of a run on all photos in a new folder", int(kept.valid.sum()),
            )  # fmt: skip
    neighbours.write(out.path(neighbours.FILE), made_by, rows.ids, hashes, found)
    return found


def _written(
    config: GroupConfig, chosen: Manifest, rows: DescriptorFolder, grouper: Grouper, out: Output
) -> dict[str, Any]:
    """Groups the photos, writes all files, and returns the job's result."""
    assert rows.rows is not None  # because `chosen` was given
    curve = threshold.curve(grouper)
    least = curve.best if config.threshold is None else config.threshold
    log.info("threshold %.3f, %s", least, "given" if config.threshold else "of the most distinct groups")
    with step("grouping all photos"):
        found, copies = grouper.grouped(least), grouper.grouped(config.copies)
    confidence, sure = (threshold.silhouettes(one, grouper.lists, np.arange(len(rows))) for one in (found, copies))
    tables_of = tables.Found(
        tables.groups(rows.ids, found, confidence, level=tables.OBJECT, least=config.min_group),
        tables.groups(rows.ids, copies, sure, level=tables.COPY),
        curve,
        _duplicates(config, chosen, rows, grouper, copies),
    )
    files_of_tables.write(out.path("groups.parquet"), pa.concat_tables([tables_of.objects, tables_of.copies]))
    suffix = ".csv" if config.manifest.endswith(".csv") else ".parquet"
    names = tables.labels(rows.ids, found, config.min_group)
    labelled = tables.labelled(chosen, rows.rows, names, out.folder)
    files_of_tables.write(out.path(f"manifest{suffix}"), labelled)
    files_of_tables.write(out.path("curve.csv"), tables.curve(curve))
    csv_files.write_escaped(out.path("duplicates.csv"), tables_of.duplicates)
    sizes = found.sizes
    result = {
        "images": len(rows),
        "errors": len(chosen) - len(rows),
        "groups": tables.count(tables_of.objects),
        "grouped": int((sizes >= config.min_group).sum()),
        "alone": int((sizes == 1).sum()),
        "largest": int(sizes.max()),
        "threshold": round(least, 6),
        "threshold_chosen": config.threshold is None,
        "silhouette": round(float(confidence.mean()), 6),
        "copy_groups": tables.count(tables_of.copies),
        "copies": len(tables_of.duplicates),
        "identical": tables_of.duplicates["why"].to_pylist().count(duplicates.IDENTICAL),
    }
    group_report.write(out.path("report.html"), config, chosen, tables_of, result)
    return out.finish(result)


def _duplicates(
    config: GroupConfig, chosen: Manifest, rows: DescriptorFolder, grouper: Grouper, copies: Grouping
) -> pa.Table:
    """The table of duplicates.csv."""
    assert rows.rows is not None
    groups = members(copies.groups, grouper.database.tie_order)
    found = duplicates.of_groups(chosen, [rows.rows[group] for group in groups], config.workers)
    row_of = np.full(len(chosen), -1)
    row_of[rows.rows] = np.arange(len(rows))
    pairs = row_of[np.array([(pair.keep, pair.delete) for pair in found], np.int64).reshape(-1, 2)]
    step = max(1, grouper.most_rows // 2)
    cosines = [np.zeros(0)]
    for start in range(0, len(pairs), step):
        distinct, place = np.unique(pairs[start : start + step], return_inverse=True)
        vectors, (one, other) = grouper.database.take(distinct), place.reshape(-1, 2).T
        cosines.append(scores_of_pairs(vectors, one, vectors, other))
    return duplicates.table(chosen, found, np.concatenate(cosines))
