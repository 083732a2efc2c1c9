"""What audit.py does: finds likely label errors and duplicates, and writes them as a table and a page with photos."""

import logging
from typing import Any

from dim.app import output_folder
from dim.audit.config import AuditConfig
from dim.audit.suspects import DUPLICATE, KINDS, AuditedPhotos, suspects, table
from dim.data import manifest as manifests
from dim.extract import descriptors
from dim.io import csv_files, tables
from dim.mine.config import Mining
from dim.mine.pool import check
from dim.report import audit as audit_report
from dim.report.page import PagePhoto
from dim.search import descriptor_folder

log = logging.getLogger(__name__)


def audit(config: AuditConfig) -> dict[str, Any]:
    """Writes suspects.parquet, suspects.csv and report.html to `config.out`, and returns the job's result.

    Raises UserError, before any file is written, if there are fewer than two labels, if no label has two photos, if a
    row of the manifest is missing in `config.descriptors`, or if the whitening doesn't fit the descriptors.
    """
    chosen = manifests.read(config.manifest).select(config.split)
    embedded = descriptors.read(config.descriptors, chosen)
    embedding, vectors = embedded.embedding, embedded.vectors
    if config.whitening and not embedding.whitening:
        embedding, whitening = descriptor_folder.load_whitening(config.whitening, embedding, config.descriptors)
        vectors = whitening.apply(vectors)
    rows = embedded.rows
    photos = AuditedPhotos(vectors, chosen.image_ids[rows], chosen.labels[rows], chosen.table["split"].to_numpy()[rows])
    check(vectors, photos.labels, photos.ids, Mining(), repr(config.manifest))
    inputs = {name: getattr(config, name) for name in ("manifest", "descriptors", "whitening")}
    with output_folder.opened(config.out, "audit", config, inputs, embedding.as_json()) as out:
        found, pairs = suspects(photos, config.least_score, config.duplicates)
        listed = table(photos, found)
        tables.write(out.path("suspects.parquet"), listed)
        csv_files.write_escaped(out.path("suspects.csv"), listed)
        counts = {kind: sum(one.kind == kind for one in found) for kind in KINDS}
        log.info("suspected: %d of a wrong label, %d duplicates, %d far from their label", *counts.values())
        if pairs > counts[DUPLICATE]:
            log.warning("there are %d pairs of duplicates; the %d nearest are listed", pairs, counts[DUPLICATE])
        where = [PagePhoto(chosen.paths[row], chosen.boxes[row]) for row in rows]
        audit_report.write(out.path("report.html"), config, photos, where, found)
        return out.finish({"images": len(rows), "errors": len(chosen) - len(rows), **counts, "duplicate_pairs": pairs})
