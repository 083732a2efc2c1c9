"""What audit.py does: finds likely label errors and duplicates, and writes them as a table and a page with photos."""

import dataclasses
import logging
from functools import partial
from typing import Any

import pyarrow as pa

from dim.app import cluster, output_folder
from dim.audit import neighbours, photos
from dim.audit.config import AuditConfig
from dim.audit.neighbours import Neighbours
from dim.audit.photos import AuditedPhotos
from dim.audit.suspects import DUPLICATE, FAR, KINDS, LABEL, suspects, table
from dim.data import manifest as manifests
from dim.data.manifest import Manifest
from dim.io import csv_files, tables
from dim.report import audit as audit_report
from dim.report.page_photos import PagePhoto
from dim.search import descriptor_folder
from dim.search.descriptor_folder import DescriptorFolder

MORE = {  # what is logged if not all suspects are listed
    LABEL: "there are %d photos of a likely wrong label; the %d with the highest scores are listed",
    DUPLICATE: "there are %d pairs of duplicates; the %d nearest are listed",
    FAR: "there are %d photos far from their label; the %d with the highest scores are listed",
}

log = logging.getLogger(__name__)


def audit(config: AuditConfig) -> dict[str, Any]:
    """Writes suspects.parquet, suspects.csv and report.html to `config.out`, and returns the job's result.

    Raises UserError, before any file is written, if there are fewer than two labels, if no label has two photos, if a
    row of the manifest is missing in `config.descriptors`, or if the whitening or the index doesn't fit the
    descriptors.
    """
    chosen = manifests.read(config.manifest).select(config.split)
    rows = descriptor_folder.read(config.descriptors, config.whitening, chosen, hashed=True)
    inputs = {name: getattr(config, name) for name in ("manifest", "descriptors", "whitening")}
    with cluster.joined():
        audited = _audited(config, chosen, rows)
        photos.require_auditable(audited, repr(config.manifest))
        if config.candidates:
            neighbours.empty_index(config.candidates, config.candidate_parameters, audited.dimension)
        with output_folder.opened(config.out, "audit", config, inputs, rows.embedding.as_json()) as out:
            near = _neighbours(config, audited)
            found, totals = suspects(audited, near, config.least_score, config.duplicates)
            listed = table(audited, found)
            tables.write(out.path("suspects.parquet"), listed)
            csv_files.write_escaped(out.path("suspects.csv"), listed)
            counts = {kind: sum(one.kind == kind for one in found) for kind in KINDS}
            log.info("suspected: %d of a wrong label, %d duplicates, %d far from their label", *counts.values())
            for kind in KINDS:
                if totals[kind] > counts[kind]:
                    log.warning(MORE[kind], totals[kind], counts[kind])
            audit_report.write(out.path("report.html"), config, audited, partial(_photo, chosen, audited), found)
            images = {"images": len(audited), "errors": len(chosen) - len(audited)}
            suspected = {**totals, DUPLICATE: counts[DUPLICATE], "duplicate_pairs": totals[DUPLICATE]}
            return out.finish(images | suspected)


def _audited(config: AuditConfig, chosen: Manifest, rows: DescriptorFolder) -> AuditedPhotos:
    assert rows.rows is not None  # because `chosen` was given
    labels, splits = (chosen.table[name].take(pa.array(rows.rows)) for name in ("label", "split"))
    return photos.of(rows.parts, rows.ids, labels, splits, rows.rows, workers=config.workers, share=config.budget.share)


def _neighbours(config: AuditConfig, audited: AuditedPhotos) -> Neighbours:
    if config.candidates:
        return neighbours.by_index(audited, config.candidates, config.candidate_parameters)
    return neighbours.by_comparison(audited)


def _photo(chosen: Manifest, audited: AuditedPhotos, row: int) -> PagePhoto:
    """The path and box of the audited photo `row`."""
    one = dataclasses.replace(chosen, table=chosen.table.slice(audited.positions[row], 1))
    return PagePhoto(one.paths[0], one.boxes[0])
