"""The extraction job: the photos of a manifest → descriptors in a store, each selected row exactly once.

`extract` checks the input, fingerprints the photos and starts a `dim.extract.run.Run`. `recipe_of` is a step from the
flags to the embedding identity; `dim.extract.config` lists all steps.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import ray

from dim.app import cluster, output_folder
from dim.data import manifest as manifests
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.extract import identity, own_process, parts, photo_files
from dim.extract.config import ExtractConfig
from dim.extract.embedder import Recipe
from dim.extract.embedding import Embedding, NetworkEmbedding
from dim.extract.plan import Plan, default_shard_rows
from dim.extract.resources import resolve_precision
from dim.extract.run import Run
from dim.model import whitening
from dim.model.spec import Source


def extract(config: ExtractConfig) -> dict[str, Any]:
    """Extracts descriptors of the rows that `config.out` lacks.

    Returns the content of result.json: the counts `images`, `ok`, `errors`, `several_frames`, `computed` and `dropped`
    (rows of photos that changed or left the manifest), and `images_per_second`. A driver that does a part of the work
    and isn't the last returns the counts of its part, and `parts_left`. Raises UserError, before it writes anything, if
    an input is unusable or `config.out` has another embedding.
    """
    selected = manifests.read(config.manifest).select(config.split)
    source = config.source(config.model)
    with contextlib.ExitStack() as stack:
        # A few photos are looked at before Ray starts, so that mistakes show at once.
        few = len(selected) <= photo_files.UNIT
        if not few:
            stack.enter_context(_connected(config, selected))
        if config.root:
            identity.require_under(config.root, selected)
        contents = identity.fingerprint_photos(selected).contents
        if few:
            stack.enter_context(_connected(config, selected))
        recipe = recipe_of(config, source)
        embedding = identity.embedding_of(recipe)
        _require_same(config, embedding)
        shard_rows = config.shard_rows or default_shard_rows(len(selected))
        run = Run(config, Plan(selected, contents, shard_rows, config.share), recipe, embedding)
        return run.whole() if config.part is None else run.part()


@contextlib.contextmanager
def _connected(config: ExtractConfig, selected: Manifest) -> Iterator[None]:
    """Connects to Ray within the block, if the photos of `selected` are where all its nodes can read them.

    Starts no Ray for a few photos.
    """
    with cluster.joined() if own_process.suffices(config, len(selected)) else cluster.connected():
        if ray.is_initialized():
            cluster.require_shared(photo_files.one_of_each_folder(selected.uris))
        yield


def recipe_of(config: ExtractConfig, source: Source) -> Recipe:
    """The recipe of `config` for the network `source`. See `resolve_precision`."""
    precision = _kept_precision(config) or resolve_precision(config.precision, config.gpus_per_worker)
    # The actors get the arrays, not the file's name: the file may change before the actors start.
    whiten_by = whitening.load(config.whitening) if config.whitening else None
    return Recipe(source, precision, config.scales, config.scales_mean, whiten_by, config.scaled_decode, config.limits)


def _kept_precision(config: ExtractConfig) -> str | None:
    """The precision of the descriptors in `config.out`, if there are any and --precision is "auto"; else None."""
    records = _records(config.out) if config.precision == "auto" and config.out else {}
    kept = (identity.of_record(record, where) for where, record in records.items())
    return next((found.precision for found in kept if isinstance(found, NetworkEmbedding)), None)


def _records(out: str) -> dict[str, dict[str, Any]]:
    """The run.json of the store `out` and of its parts, by folder."""
    record = output_folder.record_of(out)
    whole = {out: record} if record and record["job"] == "extract" else {}
    return whole | parts.records(out)


def _require_same(config: ExtractConfig, embedding: Embedding) -> None:
    for where, record in _records(config.out).items():  # output.opened refuses the folder of another job
        identity.require_equal(identity.of_record(record, where), where, embedding, config.model)
        stored = record.get("configuration", {}).get("store")
        if stored != config.store:
            raise UserError(f"{config.out!r} stores {stored}, not {config.store}; use another --out")
