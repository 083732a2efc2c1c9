"""What index.py does: an FAISS index of a folder of descriptors, block by block."""

import logging
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from dim.app import output
from dim.app.config import MOST_SEED
from dim.app.progress import with_progress
from dim.errors import UserError
from dim.io import files, local_files, seal, tables
from dim.search import descriptor_folder, exact, faiss_transforms, index
from dim.search.config import IndexConfig
from dim.search.database import Exact
from dim.search.descriptor_folder import DescriptorFolder

log = logging.getLogger(__name__)


def build(config: IndexConfig) -> dict[str, Any]:
    """Builds the index that `config` asks for in `config.out`, and returns what it is.

    Raises UserError where the folder holds no descriptors, or FAISS can't make this index of them.
    """
    if not 0 <= config.seed <= MOST_SEED:
        raise UserError(f"--seed {config.seed} must be from 0 to {MOST_SEED}")
    if config.train_rows is not None and config.train_rows < 1:
        raise UserError(f"--train-rows {config.train_rows} must be 1 or more")
    rows = descriptor_folder.read(config.descriptors, config.whitening, hashed=True)
    dimension = next(iter(rows)).shape[1]
    made = index.made(config.factory, dimension, config.seed)
    estimate = index.size(made, len(rows))
    log.info(
        "%s of %d rows of %d values: about %.1f MB, %d bytes a row, to be %s",
        config.factory,
        len(rows),
        dimension,
        estimate / 1e6,
        estimate / len(rows),
        "written straight to disk" if isinstance(made, faiss.IndexFlat) else "held in memory while it is built",
    )
    trained_on = _train(made, rows, config)
    inputs = {"descriptors": config.descriptors, "whitening": config.whitening}
    with output.opened(config.out, "index", config, inputs, rows.embedding.as_json()) as out:
        with local_files.path_to_write(out.path(index.FILE)) as path:
            _write(made, rows, path, dimension, config.factory)
            sealed = index.sealed(path)
        tables.write(out.path(index.IDS_FILE), pa.table({"image_id": rows.ids}))
        both = seal.create(config.out, [index.IDS_FILE], {index.FILE: {**sealed, "rows": len(rows)}})
        files.write_json(out.path(index.SEAL_FILE), {seal.FILES: both})
        return out.finish(
            {
                "factory": config.factory,
                "rows": len(rows),
                "errors": len(rows.errors),
                "dimension": dimension,
                "trained_on": trained_on,
                **sealed,
                "bytes_per_row": round(sealed["bytes"] / len(rows), 1),
            },
            both,
        )


def _train(made: Any, rows: DescriptorFolder, config: IndexConfig) -> int:
    """Trains the index on rows drawn by the seed, whatever the shards that they lie in; returns how many."""
    if made.is_trained:
        return 0
    count = min(len(rows), config.train_rows or index.training_rows(made))
    log.info("training on %d of %d rows, drawn by seed %d", count, len(rows), config.seed)
    place = exact.tie_order_of(rows.ids)
    drawn = np.sort(np.random.default_rng(config.seed).choice(len(rows), count, replace=False))
    sample = Exact(rows.parts, place).take(np.argsort(place)[drawn])
    with index.refusals(f"--factory {config.factory!r} can't be trained on {count} rows"):
        faiss_transforms.train(made, sample)
    return count


def _write(made: Any, rows: DescriptorFolder, path: str, dimension: int, factory: str) -> None:
    blocks = with_progress(rows, len, "indexing", len(rows), "rows")
    if isinstance(made, faiss.IndexFlat):
        index.write_flat(path, dimension, len(rows), blocks)
        return
    with index.refusals(f"--factory {factory!r} takes no rows"):
        for block in blocks:
            made.add(block)
    if made.ntotal != len(rows):
        raise RuntimeError(f"the index has {made.ntotal} rows, not {len(rows)}")
    faiss.write_index(made, path)
