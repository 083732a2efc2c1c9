"""Computes, in tasks, the sums from which a whitening is fitted.

`sum_moments` and `sum_pairs` divide the shards of a folder of descriptors among tasks, which return sums over the rows.
`moments_of_pairs` is the same for descriptors from anywhere, and can compute in its own process.
`sum_regions` sends the photos of a manifest through the network, as an extraction does. Tasks sum R-MAC's regions block
by block, and return only the sums.

Learned whitening needs pairs of matching images, which have the same label. Each image is a query if other images share
its label. All these other images are its matches, with equal weight. (cirtorch uses one match per query. S below is the
mean over all choices of that match.) The pairs need not be formed. Let n be the number of queries, n_l the number of
queries with label l, x_i the descriptor of query i, and s_l the sum of all x_i with label l. Then the covariance of the
differences is

    S = 1/n Σ_l 1/(n_l − 1) Σ_{i≠j in l} (x_i − x_j)(x_i − x_j)ᵀ = 1/n Σ_l 2/(n_l − 1) (n_l Σ_i x_i x_iᵀ − s_l s_lᵀ).

If each label has few images, the sums s_l together need memory of the same order as the descriptors. So the labels are
divided into slices that fit into memory, and the descriptors are read once for each slice.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from dim.app.tasks import in_order, spread
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.extract import photo_tables, pipeline, store
from dim.extract.embedder import Forward, Recipe, set_up_tensorflow
from dim.extract.resources import Resources
from dim.search import descriptor_folder
from dim.search.descriptor_folder import DescriptorFolder
from dim.search.exact import Part, grouped
from dim.whiten import fit
from dim.whiten.fit import Moments

UNIT_ROWS = 16384  # least rows of a unit of work, but for the last
REGIONS_IN_A_BLOCK = 8192
UNUSED = -1  # stands for the label of a row that is not summed

log = logging.getLogger(__name__)


def sum_moments(folder: str, manifest: Manifest) -> Moments:
    """Returns the moments of the descriptors of all rows of the manifest whose photo could be decoded.

    Raises UserError if the folder lacks a row of the manifest.
    """
    rows = _read(folder, manifest)
    total: Moments = functools.reduce(Moments.merge, in_tasks(_moments, rows.parts, np.zeros(len(rows), np.int32)))
    return total


def sum_pairs(folder: str, manifest: Manifest, share: int = 2**30) -> tuple[Moments, Moments]:
    """Returns what `moments_of_pairs` returns, for the descriptors of all rows of the manifest that have any.

    Raises UserError if `folder` lacks a row of the manifest, or if no label has two descriptors.
    """
    rows = _read(folder, manifest)
    codes = label_codes(manifest.table["label"].take(pa.array(rows.rows)).combine_chunks())
    if np.bincount(codes[codes != UNUSED]).max(initial=0) < 2:
        raise UserError(
            f"no label in {manifest.uri!r} has two images among the {len(manifest)} rows asked for; "
            "learned whitening needs matching pairs, use --kind pca"
        )
    return moments_of_pairs(rows.parts, codes, share)


def label_codes(labels: pa.Array) -> np.ndarray:
    """The labels as numbers from 0, int (N,). UNUSED stands for no label."""
    codes: np.ndarray = labels.dictionary_encode().indices.fill_null(UNUSED).to_numpy()
    return codes


def in_tasks(task: Callable[..., Any], parts: Sequence[Part], *shared: Any) -> Iterator[Any]:
    """Yields task(unit, *shared) for each unit of `parts`, in order, so that sums are added in the same order."""
    return in_order(spread(task, list(grouped(parts, UNIT_ROWS)), shared, stage="summing"))


def in_this_process(task: Callable[..., Any], parts: Sequence[Part], *shared: Any) -> Iterator[Any]:
    """Does what `in_tasks` does, without tasks."""
    return (task(unit, *shared) for unit in grouped(parts, UNIT_ROWS))


def moments_of_pairs(
    parts: Sequence[Part], codes: np.ndarray, share: int, each: Callable[..., Iterator[Any]] = in_tasks
) -> tuple[Moments, Moments]:
    """Returns the moments of the queries, and the moments of the differences of matching pairs.

    The covariance of the differences is S (see the module's docstring), and their mean is zero. Their `count` is
    their degrees of freedom: the number of queries minus the number of labels that queries have.

    Args:
        parts: Descriptors, (N, K).
        codes: The label of each descriptor, as `label_codes` returns them. At least one label must have two.
        share: The number of bytes that the sums of a slice of labels may take.
        each: `in_tasks` or `in_this_process`.
    """
    counts = np.bincount(codes[codes != UNUSED])
    label_of = np.where((codes != UNUSED) & (counts[codes] > 1), codes, UNUSED)
    found = each(_pair_sums, parts, label_of, counts)
    total, squares = functools.reduce(lambda one, other: (one[0].merge(other[0]), one[1] + other[1]), found)
    count = total.count - int((counts > 1).sum())
    covariance = (squares - _label_squares(parts, label_of, counts, share, each)) / total.count
    return total, Moments(count, np.zeros_like(total.mean), covariance * count)


def _read(folder: str, manifest: Manifest) -> DescriptorFolder:
    rows = descriptor_folder.read(folder, None, manifest, hashed=True)
    log.info("learning from %d descriptors; %d images have none", len(rows), len(rows.errors))
    return rows


def _blocks(parts: list[Part], label_of: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the labels (n,) and float64 descriptors (n, K) of each part, without the rows whose label is UNUSED."""
    for part in parts:
        labels = label_of[part.start : part.start + part.size]
        used = labels != UNUSED
        yield labels[used], part.load()[used].astype(np.float64)


def _moments(parts: list[Part], label_of: np.ndarray) -> Moments:
    return functools.reduce(Moments.merge, (fit.moments_of(vectors) for _, vectors in _blocks(parts, label_of)))


def _pair_sums(parts: list[Part], label_of: np.ndarray, counts: np.ndarray) -> tuple[Moments, np.ndarray]:
    """Returns the moments of the rows x of the parts, and the sum of 2 n_l/(n_l − 1) x xᵀ."""
    totals, squares = [], []
    for labels, vectors in _blocks(parts, label_of):
        totals.append(fit.moments_of(vectors))
        squares.append(_weighted_squares(vectors, 2 * counts[labels] / (counts[labels] - 1)))
    return functools.reduce(Moments.merge, totals), functools.reduce(np.add, squares)


def _label_squares(
    parts: Sequence[Part], label_of: np.ndarray, counts: np.ndarray, share: int, each: Callable[..., Iterator[Any]]
) -> np.ndarray:
    """Returns Σ 2/(n_l − 1) s_l s_lᵀ over the labels l."""
    dimension = parts[0].load().shape[1]
    step = max(1, share // (8 * dimension))
    total = np.zeros((dimension, dimension))
    for first in range(0, len(counts), step):
        several = np.maximum(counts[first : first + step], 2)  # the sum is zero if a label has one image
        sums = np.zeros((len(several), dimension))
        inside = (label_of >= first) & (label_of < first + step)
        for found in each(_sums_by_label, parts, np.where(inside, label_of - first, UNUSED)):
            for labels, part in found:
                sums[labels] += part
        total += _weighted_squares(sums, 2 / (several - 1))
    return total


def _sums_by_label(parts: list[Part], label_of: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns for each part its distinct labels (m,), and for each of them the sum of its vectors, (m, K)."""
    found = []
    for labels, vectors in _blocks(parts, label_of):
        order = np.argsort(labels, kind="stable")
        present, starts = np.unique(labels[order], return_index=True)
        if len(present):
            found.append((present, np.add.reduceat(vectors[order], starts, axis=0)))
    return found


def _weighted_squares(vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns Σ_i w_i x_i x_iᵀ (K, K) for the vectors x_i (n, K) and their weights w_i (n,)."""
    total: np.ndarray = (vectors * weights[:, None]).T @ vectors
    return total


def sum_regions(manifest: Manifest, recipe: Recipe, machine: Resources) -> Moments:
    """Returns the moments of the L2-normalised maxima of R-MAC's regions, over all photos that can be decoded."""
    channels = recipe.source.spec.channels
    nothing = [""] * len(manifest)
    columns = {"image_id": manifest.image_ids, "path": manifest.paths, "content": nothing, "shard": nothing}
    rows = pa.table(columns | {"box": pa.array(manifest.boxes, pa.list_(pa.float64()))})
    dataset = pipeline.staged(rows, recipe, machine, _Regions, (recipe, machine)).map_batches(
        _block_moments,
        batch_size=REGIONS_IN_A_BLOCK,
        batch_format="pyarrow",
        num_cpus=pipeline.DECODER_CPUS,  # of two CPUs, the network leaves one: half for decoding, half for this stage
    )
    log.info("summing the regions of %d photos", len(manifest))
    blocks = (
        Moments(row["count"], np.asarray(row["mean"]), np.reshape(row["scatter"], (channels, channels)))
        for row in dataset.iter_rows()
    )
    total = fit.merged(blocks, channels)
    log.info("learning from %d regions of %d photos", total.count, len(manifest))
    return total


class _Regions:
    """An actor that computes the regions of decoded photos. It holds the network without its pooling."""

    def __init__(self, recipe: Recipe, machine: Resources) -> None:
        self._channels = recipe.source.spec.channels
        self._forward = ThreadPoolExecutor(1).submit(_forward, recipe, machine)  # in a thread, see `pipeline.Network`

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns one row for each region of each photo in `table` (columns `photo_tables.DECODED`)."""
        parts, _ = self._forward.result()(photo_tables.images(table))
        values = pa.array(np.concatenate([np.zeros(0, np.float32), *(part.reshape(-1) for part in parts)]))
        return pa.table({"region": pa.FixedSizeListArray.from_arrays(values, self._channels)})


def _forward(recipe: Recipe, machine: Resources) -> Forward:
    set_up_tensorflow(machine.threads, machine.streams, one_shape=recipe.source.spec.resize == "squash")
    import tensorflow as tf  # noqa: PLC0415

    from dim.model import network  # noqa: PLC0415
    from dim.model.pooling import region_vectors  # noqa: PLC0415

    maps = network.part(network.load(recipe.source, recipe.precision), None, recipe.source.spec.layer)
    function = tf.function(
        lambda images: region_vectors(tf.cast(maps(images, training=False), tf.float32)),
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)],
    )
    return Forward(function, machine.batch_size, machine.streams)


def _block_moments(table: pa.Table) -> pa.Table:
    found = fit.moments_of(store.vectors(table["region"]))
    return pa.table({"count": [found.count], "mean": [found.mean], "scatter": [found.scatter.reshape(-1)]})
