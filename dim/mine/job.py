"""The mining job: a store's descriptors and a manifest's labels → triplets.parquet."""

import logging
from typing import Any

from dim.app.cluster import connected
from dim.app.output_folder import opened
from dim.data import manifest
from dim.extract import descriptors
from dim.io import tables
from dim.mine.config import MineConfig
from dim.mine.mining import check_candidates, mine
from dim.mine.pool import check

logger = logging.getLogger(__name__)


def mine_folder(config: MineConfig) -> dict[str, Any]:
    """Mines one split of a manifest and writes `triplets.parquet`.

    Returns the content of result.json: the counts `candidates`, `active` and `kept`, and the mean distances. Raises
    UserError if the labels cannot give triplets, or if the descriptors are incomplete or not normalised.
    """
    rows = manifest.read(config.manifest).select(config.split)
    embedded = descriptors.read(config.descriptors, rows)
    labels, image_ids = rows.labels[embedded.rows], rows.image_ids[embedded.rows]
    check(embedded.vectors, labels, image_ids, config, f"split {config.split!r} of {config.manifest!r}")
    check_candidates(config, embedded.vectors.shape[1])
    inputs: dict[str, str | None] = {"manifest": config.manifest, "descriptors": config.descriptors}
    with opened(config.out, "mine", config, inputs, embedded.embedding.as_json()) as output, connected():
        triplets = mine(embedded.vectors, labels, image_ids, config)
        tables.write(output.path("triplets.parquet"), triplets.table(image_ids))
        if not triplets.kept:
            logger.warning("no triplet is active: each negative is farther than its positive by at least the margin")
        return output.finish(triplets.summary())
