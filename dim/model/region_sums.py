"""The moments of R-MAC's regions over the photos of a manifest, from which their whitening is fitted.

The photos go through the network as in an extraction. Regions are summed where they are made, block by block; only the
sums come back.
"""

import functools
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from dim.data.manifest import Manifest
from dim.extract import pipeline, store
from dim.extract.embedder import Recipe
from dim.extract.forward import Forward, set_up_tensorflow
from dim.extract.resources import Resources
from dim.model import moments
from dim.model.moments import Moments

REGIONS_IN_A_BLOCK = 8192

log = logging.getLogger(__name__)


def sum_regions(manifest: Manifest, recipe: Recipe, machine: Resources) -> Moments:
    """The moments of the L2-normalised maxima of all regions of the manifest's photos; unreadable photos have none."""
    spec = recipe.source.spec
    nothing = [""] * len(manifest)
    columns = {"image_id": manifest.image_ids, "path": manifest.paths, "content": nothing, "shard": nothing}
    rows = pa.table(columns | {"box": pa.array(manifest.boxes, pa.list_(pa.float64()))})
    dataset = pipeline.staged(rows, recipe, machine, _Regions, (recipe, machine)).map_batches(
        _summed,
        batch_size=REGIONS_IN_A_BLOCK,
        batch_format="pyarrow",
        num_cpus=pipeline.DECODER_CPUS,  # as little as a machine of two CPUs has left
    )
    log.info("summing the regions of %d photos", len(manifest))
    blocks = (_moments(row) for row in dataset.iter_rows())
    none = moments.of(np.zeros((0, spec.channels)))
    total: Moments = functools.reduce(Moments.merge, blocks, none)
    log.info("learning from %d regions of %d photos", total.count, len(manifest))
    return total


class _Regions:
    """The stage that finds regions: an actor that holds the network below its pooling."""

    def __init__(self, recipe: Recipe, machine: Resources) -> None:
        self._channels = recipe.source.spec.channels
        self._forward = ThreadPoolExecutor(1).submit(_forward, recipe, machine)  # as in `pipeline.Network`

    def __call__(self, table: pa.Table) -> pa.Table:
        """Decoded photos → a row for each of their regions."""
        parts, _ = self._forward.result()(pipeline.images(table))
        values = pa.array(np.concatenate([np.zeros(0, np.float32), *(part.reshape(-1) for part in parts)]))
        return pa.table({"region": pa.FixedSizeListArray.from_arrays(values, self._channels)})


def _forward(recipe: Recipe, machine: Resources) -> Forward:
    set_up_tensorflow(machine.threads, machine.streams, one_shape=recipe.source.spec.resize == "squash")
    import tensorflow as tf  # noqa: PLC0415

    from dim.model import network  # noqa: PLC0415
    from dim.model.normalisation import l2_normalise  # noqa: PLC0415
    from dim.model.regions import region_maxima  # noqa: PLC0415

    maps = network.part(network.load(recipe.source, recipe.precision), None, recipe.source.spec.layer)
    function = tf.function(
        lambda images: l2_normalise(region_maxima(tf.cast(maps(images, training=False), tf.float32))),
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)],
    )
    return Forward(function, machine.batch_size, machine.streams)


def _summed(table: pa.Table) -> pa.Table:
    found = moments.of(store.vectors(table["region"]))
    return pa.table({"count": [found.count], "mean": [found.mean], "scatter": [found.scatter.reshape(-1)]})


def _moments(row: dict[str, Any]) -> Moments:
    mean = np.asarray(row["mean"])
    return Moments(row["count"], mean, np.asarray(row["scatter"]).reshape(len(mean), len(mean)))
