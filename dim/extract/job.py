"""The extraction job: the photos of a manifest → descriptors in a store, each selected row exactly once.

`extract` reads the manifest, asks `resume.pending` which rows the finished shards lack, and sends them through the
pipeline. The same command therefore resumes an interrupted run. `recipe_of` and `embedding_of` are two steps from the
flags to the embedding identity; `dim.extract.config` lists all steps.
"""

import contextlib
import logging
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from dim.app import cluster, output_folder
from dim.app.progress import Progress
from dim.data import manifest as manifests
from dim.data.manifest import Manifest
from dim.errors import UserError, count_reasons
from dim.extract import finished_shards, identity, resume, store
from dim.extract.config import ExtractConfig
from dim.extract.embedder import Recipe
from dim.extract.embedding import Embedding, NetworkEmbedding, from_json
from dim.extract.resources import resolve_precision, resources
from dim.extract.resume import Writer
from dim.io.tables import require_each_once
from dim.model import whitening
from dim.model.spec import Source

log = logging.getLogger(__name__)


def extract(config: ExtractConfig) -> dict[str, Any]:
    """Extracts descriptors of the rows that `config.out` lacks.

    Returns the content of result.json: the counts `images`, `ok`, `errors`, `several_frames` and `computed`, and
    `images_per_second`. Raises UserError, before it writes anything, if an input is unusable or `config.out` has
    another embedding.
    """
    selected = manifests.read(config.manifest).select(config.split)
    source = config.source(config.model)
    if config.root:
        identity.require_under(config.root, selected)
    contents = identity.fingerprint_photos(selected)
    with cluster.connected():
        cluster.require_shared(selected.paths)
        recipe = recipe_of(config, source)
        embedding = embedding_of(recipe)
        _require_same(config, embedding)
        inputs = {"manifest": config.manifest, "model": config.model, "whitening": config.whitening}
        with output_folder.opened(config.out, "extract", config, inputs, embedding.as_json()) as out:
            left = resume.pending(config.out, embedding, selected.image_ids, contents.contents, config.retry_failed)
            log.info("%d photos, %d to do", len(selected), len(left))
            seconds = _run(config, _planned(selected, contents.contents, left, config.shard_rows), recipe, embedding)
            result = _result(config.out, selected, len(left), seconds)
            return out.finish(result, finished_shards.sealed(config.out, store.shards(config.out)))


def recipe_of(config: ExtractConfig, source: Source) -> Recipe:
    """The recipe of `config` for the network `source`. If the precision is "auto", Ray must be connected."""
    precision = _kept_precision(config) or resolve_precision(config.precision, config.gpus_per_worker)
    # The actors get the arrays, not the file's name: the file may change before the actors start.
    whiten_by = whitening.load(config.whitening) if config.whitening else None
    return Recipe(source, precision, config.scales, config.scales_mean, whiten_by, config.scaled_decode, config.limits)


def _kept_precision(config: ExtractConfig) -> str | None:
    """The precision of the descriptors in `config.out`, if there are any and --precision is "auto"; else None."""
    record = output_folder.record_of(config.out) if config.precision == "auto" and config.out else None
    if record is None or record["job"] != "extract":
        return None
    kept = identity.of_record(record, config.out)
    return kept.precision if isinstance(kept, NetworkEmbedding) else None


def embedding_of(recipe: Recipe) -> NetworkEmbedding:
    """The identity of `recipe`'s descriptors. Raises UserError if its whitening was fitted on another embedding."""
    known = recipe.source.spec
    embedding = NetworkEmbedding(
        backbone=known.backbone,
        layer=known.layer,
        pooling=known.pooling,
        weights=recipe.source.fingerprint(),
        preprocessing=known.preprocessing,
        image_size=known.image_size,
        resize=known.resize,
        scales=recipe.scales,
        scales_mean=recipe.scales_mean if len(recipe.scales) > 1 else None,
        whitening=None,
        precision=recipe.precision,
        scaled_decode=recipe.scaled_decode,
    )
    if recipe.whitening is None:
        return embedding
    fitted, file = recipe.whitening.embedding, str(recipe.whitening.uri)
    if fitted is not None:
        identity.require_equal(from_json(fitted, repr(file)), file, embedding, "this extraction")
    return embedding.whitened(recipe.whitening.sha256)


def _require_same(config: ExtractConfig, embedding: Embedding) -> None:
    record = output_folder.record_of(config.out)
    if record is None or record["job"] != "extract":
        return  # output.opened refuses the folder of another job
    identity.require_equal(identity.of_record(record, config.out), config.out, embedding, config.model)
    stored = record.get("configuration", {}).get("store")
    if stored != config.store:
        raise UserError(f"{config.out!r} stores {stored}, not {config.store}; use another --out")


def _run(config: ExtractConfig, rows: pa.Table, recipe: Recipe, embedding: Embedding) -> float:
    """Extracts `rows` and returns the seconds taken."""
    if not rows.num_rows:
        return 0.0
    from dim.extract import pipeline  # noqa: PLC0415  (a finished extraction needs no Ray Data)

    waiting = Counter(rows["shard"].to_pylist())
    image_size = recipe.source.spec.image_size
    machine = resources(config.workers, config.gpus_per_worker, config.batch_size, image_size, rows.num_rows)
    log.info("starting %d network actor%s", machine.workers, "" if machine.workers == 1 else "s")
    progress = Progress("extracting", rows.num_rows, errors=True)
    open_shards: dict[str, list[pa.Table]] = {}
    # The generator is closed here, even after an error. If it were closed after Ray ended, it would start Ray again.
    with (
        Writer(config.out, embedding) as writer,
        contextlib.closing(pipeline.run(rows, recipe, config.store, machine)) as batches,
    ):
        for batch in batches:
            progress.add(batch.num_rows, batch["status"].to_pylist().count(store.ERROR))
            for name in batch["shard"].unique().to_pylist():
                part = batch.filter(pa.compute.equal(batch["shard"], name)).drop_columns("shard")
                open_shards.setdefault(name, []).append(part)
                waiting[name] -= part.num_rows
                if waiting[name] == 0:
                    writer.write(name, pa.concat_tables(open_shards.pop(name)))
    return progress.seconds


def _planned(selected: Manifest, contents: list[str], left: np.ndarray, shard_rows: int) -> pa.Table:
    """The input of the pipeline: the rows `left`, each with the name of the shard that it goes to."""
    keys = [(selected.image_ids[row], contents[row]) for row in left]
    parts = [keys[start : start + shard_rows] for start in range(0, len(keys), shard_rows)]
    return pa.table(
        {
            "image_id": [image_id for image_id, _ in keys],
            "path": [selected.paths[row] for row in left],
            "box": pa.array([selected.boxes[row] for row in left], pa.list_(pa.float64())),
            "content": [content for _, content in keys],
            "shard": [name for part in parts for name in [store.shard_name(part)] * len(part)],
        }
    )


def _result(folder: str, selected: Manifest, computed: int, seconds: float) -> dict[str, Any]:
    image_ids: list[str] = []
    errors: list[str] = []
    several = 0
    for name in store.shards(folder):
        table = store.read_shard(folder, name, ["image_id", "status", "error"])
        image_ids += table["image_id"].to_pylist()
        several += store.several_frames(table)
        failed = table.filter(pa.compute.equal(table["status"], store.ERROR))
        errors += failed["error"].fill_null("unknown reason").to_pylist()
    require_each_once(selected.image_ids, image_ids, repr(folder))
    if errors:
        log.warning("photos that could not be read: %d (%s); each has an error row", len(errors), count_reasons(errors))
    if several:
        log.info("photos whose files hold several frames or pages; the first of each is used: %d", several)
    return {
        "images": len(selected),
        "ok": len(selected) - len(errors),
        "errors": len(errors),
        "several_frames": several,
        "computed": computed,
        "images_per_second": round(computed / seconds, 2) if computed else 0.0,
    }
