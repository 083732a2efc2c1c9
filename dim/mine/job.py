"""The mining job: a store's descriptors and a manifest's labels → triplets.parquet."""

import logging
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dim.app.cluster import connected
from dim.app.output_folder import opened
from dim.data import manifest
from dim.io import local_copies
from dim.mine.config import MineConfig
from dim.mine.mining import check_candidates, mine
from dim.mine.pool import check_labels
from dim.mine.ranking import ROWS
from dim.mine.remote import Remote
from dim.mine.triplets import Triplets, means
from dim.search import descriptor_folder

logger = logging.getLogger(__name__)


def mine_folder(config: MineConfig) -> dict[str, Any]:
    """Mines one split of a manifest and writes `triplets.parquet`.

    Returns the content of result.json: the counts `candidates`, `active` and `kept`, and the mean distances. Raises
    UserError if the labels cannot give triplets, or if the descriptors are incomplete or not normalised.
    """
    chosen = manifest.read(config.manifest).select(config.split)
    rows = descriptor_folder.read(config.descriptors, chosen=chosen, hashed=True)
    where, labels = f"split {config.split!r} of {config.manifest!r}", chosen.table["label"].take(pa.array(rows.rows))
    check_labels(labels, config, where)
    if config.candidates:
        check_candidates(config, rows.parts[0].load().shape[1])
    inputs: dict[str, str | None] = {"manifest": config.manifest, "descriptors": config.descriptors}
    with opened(config.out, "mine", config, inputs, rows.embedding.as_json()) as output, connected():
        remote, share = Remote(config.workers), config.budget.share
        found = mine(rows.parts, labels, rows.ids, config, remote=remote, share=share, where=where)
        mean_distances = means(_written(found.parts, rows.ids, output.path("triplets.parquet")))
        if not found.kept:
            logger.warning("no triplet is active: each negative is farther than its positive by at least the margin")
        counts = {"candidates": found.candidates, "active": found.active, "kept": found.kept}
        return output.finish(counts | mean_distances)


def _written(parts: Iterator[Triplets], image_ids: pa.Array, uri: str) -> Iterator[Triplets]:
    """Yields `parts`, and writes each to the Parquet file `uri` as a row group."""
    schema, rank = Triplets.none().table(image_ids).schema, 1
    with local_copies.path_to_write(uri) as path, pq.ParquetWriter(path, schema) as writer:
        for part in parts:
            writer.write_table(part.table(image_ids, rank), row_group_size=ROWS)
            rank += part.kept
            yield part
