"""Trains the index that all parts of an index folder are filled copies of.

The folder keeps it, without rows, so that rows can be added to the index later. The seed draws the training sample
among the sorted ids, so the sample doesn't depend on the order of the rows.
"""

import logging
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import ray

from dim.app import tasks
from dim.io import files, seal
from dim.search import exact
from dim.search.config import IndexConfig
from dim.search.database import taken
from dim.search.descriptor_folder import DescriptorFolder
from dim.search.exact import Part
from dim.search.index_factory import empty_index, train, training_rows

log = logging.getLogger(__name__)
TRAINED_FILE = "trained.index"  # written only if the kind of index needs training


@dataclass(frozen=True)
class TrainedIndex:
    """An index without rows.

    `content` is the serialised index, uint8. It was trained on `rows` of `among` rows, which `shards`, a checksum,
    identifies; `rows` is 0 if the kind of index needs no training. `recipe` is what it depends on beside the rows.
    """

    content: np.ndarray
    recipe: dict[str, Any]
    rows: int
    among: int
    shards: str

    def as_json(self) -> dict[str, Any]:
        """The entry that describes this index in index.json."""
        return {name: getattr(self, name) for name in ("recipe", "rows", "among", "shards", "sha256")}

    @property
    def sha256(self) -> str:
        """The checksum of `content`."""
        return seal.sha256(self.content.tobytes())


def recipe_of(config: IndexConfig, rows: DescriptorFolder) -> dict[str, Any]:
    """What a trained index depends on beside the rows."""
    settings = {name: getattr(config, name) for name in ("factory", "seed", "train_rows")}
    return {**settings, "embedding": rows.embedding.id}


def kept(folder: str, known: Any, recipe: dict[str, Any], empty: Any) -> TrainedIndex | None:
    """The trained index in `folder` if it has this recipe and is what `known`, from `as_json`, describes.

    `empty` is an untrained index of the recipe.
    """
    if not isinstance(known, dict) or known.get("recipe") != recipe:
        return None
    uri = files.join(folder, TRAINED_FILE)
    if known["rows"] and not files.exists(uri):
        return None
    content = np.frombuffer(files.read_bytes(uri), np.uint8) if known["rows"] else faiss.serialize_index(empty)
    found = TrainedIndex(content, recipe, known["rows"], known["among"], known["shards"])
    return found if found.sha256 == known["sha256"] else None


def new(config: IndexConfig, rows: DescriptorFolder, dimension: int, shards: str) -> TrainedIndex:
    """Trains an index in one task, if its kind needs training. `shards` is a checksum of the rows' shards.

    Raises UserError if it can't be trained on the rows.
    """
    index = empty_index(config.factory, dimension, config.seed)
    recipe = recipe_of(config, rows)
    if index.is_trained:
        return TrainedIndex(faiss.serialize_index(index), recipe, 0, len(rows), shards)
    count = min(len(rows), config.train_rows or sample_size(config, index))
    log.info("training on %d of %d rows, drawn by seed %d", count, len(rows), config.seed)
    drawn = np.sort(np.random.default_rng(config.seed).choice(len(rows), count, replace=False))
    sample = np.argsort(exact.tie_order_of(rows.ids))[drawn]
    arguments = (rows.parts, config, dimension)
    if ray.is_initialized():
        ((_, content),) = tasks.spread(_trained, [sample], arguments)
    else:  # with all threads of this process
        content = _trained(sample, *arguments)
    return TrainedIndex(content, recipe, count, len(rows), shards)


def sample_size(config: IndexConfig, index: Any) -> int:
    """The most rows that `index` is trained on by default: as many as it needs, if half of a node's memory holds them.

    The node then has no other task.
    """
    copies = 2 if isinstance(index, faiss.IndexPreTransform) else 1
    return min(training_rows(index), config.budget.node // 2 // (4 * int(index.d) * copies))


def _trained(drawn: np.ndarray, parts: list[Part], config: IndexConfig, dimension: int) -> np.ndarray:
    """Trains an index on the rows `drawn`, and returns it serialised."""
    index = empty_index(config.factory, dimension, config.seed)
    sample = taken(parts, drawn)
    train(index, sample, f"--factory {config.factory!r}")
    content: np.ndarray = faiss.serialize_index(index)
    return content
