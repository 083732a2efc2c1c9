"""Computes, in Ray tasks, the sums from which a whitening is fitted.

`sum_moments` and `sum_pairs` read the shards of a folder of descriptors, in tasks that each return a few matrices.
`sum_regions` sends the photos of a manifest through the network, as an extraction does. The regions of R-MAC are summed
in blocks on the machines that compute them, and only the sums come back.

For learned whitening, each image that shares its label with others is a query once, and the others are its matches with
equal weight. (cirtorch draws one match for each query; this is the mean over all draws.) No pair has to be formed: with
n queries, n_l of them with label l, and s_l the sum of these n_l descriptors, the covariance of the differences is

    S = 1/n Σ_l 1/(n_l − 1) Σ_{i≠j in l} (x_i − x_j)(x_i − x_j)ᵀ = 1/n Σ_l 2/(n_l − 1) (n_l Σ_i x_i x_iᵀ − s_l s_lᵀ).

If each label has few images, the sums s_l together are as large as the descriptors. So the labels are split into parts,
and one task adds up the sums of each part.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from dim.app import placement
from dim.app.progress import with_progress
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.extract import descriptors, pipeline, store
from dim.extract.embedder import Forward, Recipe, set_up_tensorflow
from dim.extract.resources import Resources
from dim.extract.shards import Shard, belonging
from dim.whiten import fit
from dim.whiten.fit import Moments

TASKS = 64  # at most; each task returns one or two K × K matrices
SHARDS_PER_NEW_CPU = 16  # fewer are not worth starting a CPU for: 16 shards of 1,024 rows take some seconds
LABELS_IN_A_PART = 16384
REGIONS_IN_A_BLOCK = 8192
UNUSED = -1  # the label or position of a row that is not summed

log = logging.getLogger(__name__)


def sum_moments(folder: str, manifest: Manifest) -> Moments:
    """The moments of the descriptors of the manifest's rows, except those whose photo could not be decoded.

    Raises UserError if `folder`, an absolute path, lacks a row.
    """
    decoded = _decoded(folder, manifest)
    tasks = _by_shards(_moments, folder, manifest, np.where(decoded, 0, UNUSED))
    parts = with_progress(tasks, lambda _: 1, "summing", len(tasks), "parts")
    total: Moments = functools.reduce(Moments.merge, map(ray.get, parts))
    _require_all(total, decoded, folder)
    return total


def sum_pairs(folder: str, manifest: Manifest) -> tuple[Moments, Moments]:
    """The moments of the queries, and the moments of the differences of matching pairs.

    The differences have the covariance S (see the module) and a mean of zero. Their count is the number of linearly
    independent differences: queries minus labels. Raises UserError if `folder` lacks a row of the manifest, or if no
    label has two descriptors.
    """
    labelled = _decoded(folder, manifest) & manifest.table["label"].is_valid().to_numpy()
    _, codes, counts = np.unique(manifest.labels[labelled].astype(str), return_inverse=True, return_counts=True)
    if counts.max(initial=0) < 2:
        raise UserError(
            f"no label in {manifest.uri!r} has two images among the {len(manifest)} rows asked for; "
            "learned whitening needs matching pairs, use --kind pca"
        )
    label_of = np.full(len(manifest), UNUSED)
    label_of[labelled] = np.where(counts[codes] > 1, codes, UNUSED)

    tasks = _by_shards(_pair_sums, folder, manifest, label_of, counts, returns=2 + _part_count(counts))
    totals, squares, *parts = zip(*tasks, strict=True)
    label_squares = [ray.remote(_label_squares).remote(counts, *pieces) for pieces in parts]
    total = functools.reduce(Moments.merge, map(ray.get, totals))
    _require_all(total, label_of != UNUSED, folder)
    covariance = (sum(map(ray.get, squares)) - sum(map(ray.get, label_squares))) / total.count
    count = total.count - int((counts > 1).sum())
    return total, Moments(count, np.zeros_like(total.mean), covariance * count)


def _by_shards(
    task: Callable[..., Any], folder: str, manifest: Manifest, *arguments: np.ndarray, returns: int = 1
) -> list[Any]:
    """Starts `task` for groups of the folder's shards. Each call gets the manifest's ids, then `arguments`."""
    shards = belonging(folder)
    remote = ray.remote(task).options(num_returns=returns)
    shared = [ray.put(value) for value in (manifest.table["image_id"].combine_chunks(), *arguments)]
    tasks = min(TASKS, placement.task_count(len(shards), SHARDS_PER_NEW_CPU))
    return [remote.remote(folder, shards[start::tasks], *shared) for start in range(tasks)]


def _decoded(folder: str, manifest: Manifest) -> np.ndarray:
    """Which of the manifest's rows have a descriptor, bool (N,). Raises UserError if `folder` lacks a row."""
    present, decoded = np.zeros((2, len(manifest)), dtype=bool)
    for rows, ok in map(ray.get, _by_shards(_found_rows, folder, manifest)):
        present[rows] = True
        decoded[rows] = ok
    descriptors.require_present(present, folder, manifest)
    log.info("learning from %d descriptors; %d images have none", decoded.sum(), (~decoded).sum())
    return decoded


def _positions(table: pa.Table, ids: pa.Array) -> np.ndarray:
    """The position in `ids` of each row of the table; UNUSED if it is not there."""
    return np.asarray(pc.index_in(table["image_id"], value_set=ids).fill_null(UNUSED).to_numpy())


def _found_rows(folder: str, shards: list[Shard], ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The positions in `ids` of the shards' rows, and whether each of these rows has a descriptor."""
    parts = store.read_shards(folder, ["image_id", "status"], shards)
    table = pa.concat_tables(part for _, part in parts)
    rows = _positions(table, ids)
    ok = pc.equal(table["status"], store.OK).to_numpy()
    return rows[rows != UNUSED], ok[rows != UNUSED]


def _blocks(
    folder: str, shards: list[Shard], ids: pa.Array, label_of: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields for each shard the labels (n,) and descriptors (n, K), float64, of the rows whose label is not UNUSED."""
    for _, table in store.read_shards(folder, ["image_id", "descriptor"], shards, hashed=True):
        rows = _positions(table, ids)
        labels = np.where(rows == UNUSED, UNUSED, label_of[rows])
        used = labels != UNUSED
        yield labels[used], store.vectors(table["descriptor"].filter(pa.array(used))).astype(np.float64)


def _moments(folder: str, shards: list[Shard], ids: pa.Array, label_of: np.ndarray) -> Moments:
    blocks = _blocks(folder, shards, ids, label_of)
    return functools.reduce(Moments.merge, (fit.moments_of(vectors) for _, vectors in blocks))


def _pair_sums(folder: str, shards: list[Shard], ids: pa.Array, label_of: np.ndarray, counts: np.ndarray) -> list[Any]:
    """The shards' moments, their Σ 2 n_l/(n_l − 1) x xᵀ, and for each part its labels and each label's sum of rows."""
    totals, squares, found = [], [], []
    for labels, vectors in _blocks(folder, shards, ids, label_of):
        totals.append(fit.moments_of(vectors))
        squares.append(_weighted_squares(vectors, 2 * counts[labels] / (counts[labels] - 1)))
        found.append(_sums_by_label(labels, vectors))
    labels, sums = map(np.concatenate, zip(*found, strict=True))
    part_of = labels // LABELS_IN_A_PART
    parts = [(labels[part_of == part], sums[part_of == part]) for part in range(_part_count(counts))]
    return [functools.reduce(Moments.merge, totals), sum(squares), *parts]


def _part_count(counts: np.ndarray) -> int:
    return -(-len(counts) // LABELS_IN_A_PART)


def _label_squares(counts: np.ndarray, *pieces: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Σ 2/(n_l − 1) s_l s_lᵀ over the labels of one part; `pieces` are its labels and sums in each group of shards."""
    labels, sums = _sums_by_label(*map(np.concatenate, zip(*pieces, strict=True)))
    return _weighted_squares(sums, 2 / (counts[labels] - 1))


def _sums_by_label(labels: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct labels (m,), and the sum of the vectors (n, K) of each label, (m, K)."""
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    return present, np.add.reduceat(vectors[order], starts, axis=0)


def _weighted_squares(vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ weight · x xᵀ over the vectors (n, K): (K, K)."""
    total: np.ndarray = (vectors * weights[:, None]).T @ vectors
    return total


def _require_all(total: Moments, used: np.ndarray, folder: str) -> None:
    if total.count != used.sum():
        raise RuntimeError(f"{folder!r}: {total.count} descriptors were summed, not {used.sum()}")


def sum_regions(manifest: Manifest, recipe: Recipe, machine: Resources) -> Moments:
    """The moments of the L2-normalised maxima of all regions of the manifest's photos, except unreadable ones."""
    channels = recipe.source.spec.channels
    nothing = [""] * len(manifest)
    columns = {"image_id": manifest.image_ids, "path": manifest.paths, "content": nothing, "shard": nothing}
    rows = pa.table(columns | {"box": pa.array(manifest.boxes, pa.list_(pa.float64()))})
    dataset = pipeline.staged(rows, recipe, machine, _Regions, (recipe, machine)).map_batches(
        _block_moments,
        batch_size=REGIONS_IN_A_BLOCK,
        batch_format="pyarrow",
        num_cpus=pipeline.DECODER_CPUS,  # the network leaves no more on a machine of two CPUs
    )
    log.info("summing the regions of %d photos", len(manifest))
    blocks = (
        Moments(row["count"], np.asarray(row["mean"]), np.reshape(row["scatter"], (channels, channels)))
        for row in dataset.iter_rows()
    )
    total: Moments = functools.reduce(Moments.merge, blocks, fit.moments_of(np.zeros((0, channels))))
    log.info("learning from %d regions of %d photos", total.count, len(manifest))
    return total


class _Regions:
    """The stage that computes regions: an actor that holds the network below its pooling."""

    def __init__(self, recipe: Recipe, machine: Resources) -> None:
        self._channels = recipe.source.spec.channels
        self._forward = ThreadPoolExecutor(1).submit(_forward, recipe, machine)  # see `pipeline.Network`

    def __call__(self, table: pa.Table) -> pa.Table:
        """Decoded photos → one row for each of their regions."""
        parts, _ = self._forward.result()(pipeline.images(table))
        values = pa.array(np.concatenate([np.zeros(0, np.float32), *(part.reshape(-1) for part in parts)]))
        return pa.table({"region": pa.FixedSizeListArray.from_arrays(values, self._channels)})


def _forward(recipe: Recipe, machine: Resources) -> Forward:
    set_up_tensorflow(machine.threads, machine.streams, one_shape=recipe.source.spec.resize == "squash")
    import tensorflow as tf  # noqa: PLC0415

    from dim.model import network  # noqa: PLC0415
    from dim.model.layers import l2_normalise  # noqa: PLC0415
    from dim.model.pooling import region_maxima  # noqa: PLC0415

    maps = network.part(network.load(recipe.source, recipe.precision), None, recipe.source.spec.layer)
    function = tf.function(
        lambda images: l2_normalise(region_maxima(tf.cast(maps(images, training=False), tf.float32))),
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)],
    )
    return Forward(function, machine.batch_size, machine.streams)


def _block_moments(table: pa.Table) -> pa.Table:
    found = fit.moments_of(store.vectors(table["region"]))
    return pa.table({"count": [found.count], "mean": [found.mean], "scatter": [found.scatter.reshape(-1)]})
