"""Computes, in Ray tasks, the sums from which a whitening is fitted.

`sum_moments` and `sum_pairs` divide the shards of a folder of descriptors among tasks, which return sums over the rows.
`sum_regions` sends the photos of a manifest through the network, as an extraction does. Tasks sum R-MAC's regions block
by block, and return only the sums.

Learned whitening needs pairs of matching images, which have the same label. Each image is a query if other images share
its label. All these other images are its matches, with equal weight. (cirtorch uses one match per query. S below is the
mean over all choices of that match.) The pairs need not be formed. Let n be the number of queries, n_l the number of
queries with label l, x_i the descriptor of query i, and s_l the sum of all x_i with label l. Then the covariance of the
differences is

    S = 1/n Σ_l 1/(n_l − 1) Σ_{i≠j in l} (x_i − x_j)(x_i − x_j)ᵀ = 1/n Σ_l 2/(n_l − 1) (n_l Σ_i x_i x_iᵀ − s_l s_lᵀ).

If each label has few images, the sums s_l together need memory of the same order as the descriptors. So the labels are
split into parts, and one task per part completes the sums s_l.
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

from dim.app import worker_placement
from dim.app.progress import with_progress
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.extract import descriptors, pipeline, store
from dim.extract.embedder import Forward, Recipe, set_up_tensorflow
from dim.extract.finished_shards import Shard, belonging
from dim.extract.resources import Resources
from dim.whiten import fit
from dim.whiten.fit import Moments

TASKS = 64  # the shards are divided among at most so many tasks; each returns one or two K × K matrices
SHARDS_PER_NEW_CPU = 16  # the shards (some seconds of work) that a task must have to justify starting a CPU
LABELS_IN_A_PART = 16384
REGIONS_IN_A_BLOCK = 8192
UNUSED = -1  # stands for the label or the position of a row that is not summed

log = logging.getLogger(__name__)


def sum_moments(folder: str, manifest: Manifest) -> Moments:
    """Returns the moments of the descriptors of all rows of the manifest whose photo could be decoded.

    `folder` is an absolute path. Raises UserError if the folder lacks a row of the manifest.
    """
    decoded = _decoded(folder, manifest)
    tasks = _by_shards(_moments, folder, manifest, np.where(decoded, 0, UNUSED))
    parts = with_progress(tasks, lambda _: 1, "summing", len(tasks), "parts")
    total: Moments = functools.reduce(Moments.merge, map(ray.get, parts))
    _require_all(total, decoded, folder)
    return total


def sum_pairs(folder: str, manifest: Manifest) -> tuple[Moments, Moments]:
    """Returns the moments of the queries, and the moments of the differences of matching pairs.

    The covariance of the differences is S (see the module's docstring), and their mean is zero. Their `count` is
    their degrees of freedom: the number of queries minus the number of labels that queries have. Raises UserError if
    `folder` lacks a row of the manifest, or if no label has two descriptors.
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
    """Starts tasks that call task(folder, shards, ids of the manifest, *arguments), each for some of the shards."""
    shards = belonging(folder)
    remote = ray.remote(task).options(num_returns=returns)
    shared = [ray.put(value) for value in (manifest.table["image_id"].combine_chunks(), *arguments)]
    tasks = min(TASKS, worker_placement.task_count(len(shards), SHARDS_PER_NEW_CPU))
    return [remote.remote(folder, shards[start::tasks], *shared) for start in range(tasks)]


def _decoded(folder: str, manifest: Manifest) -> np.ndarray:
    """Returns which rows of the manifest have a descriptor, bool (N,). Raises UserError if `folder` lacks a row."""
    present, decoded = np.zeros((2, len(manifest)), dtype=bool)
    for rows, ok in map(ray.get, _by_shards(_found_rows, folder, manifest)):
        present[rows] = True
        decoded[rows] = ok
    descriptors.require_present(present, folder, manifest)
    log.info("learning from %d descriptors; %d images have none", decoded.sum(), (~decoded).sum())
    return decoded


def _positions(table: pa.Table, ids: pa.Array) -> np.ndarray:
    """Returns, for each row of the table, the position of its image_id in `ids`, or UNUSED if `ids` lacks it."""
    return np.asarray(pc.index_in(table["image_id"], value_set=ids).fill_null(UNUSED).to_numpy())


def _found_rows(folder: str, shards: list[Shard], ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for each row of the shards that is in `ids`, its position there and whether it has a descriptor."""
    parts = store.read_shards(folder, ["image_id", "status"], shards)
    table = pa.concat_tables(part for _, part in parts)
    rows = _positions(table, ids)
    ok = pc.equal(table["status"], store.OK).to_numpy()
    return rows[rows != UNUSED], ok[rows != UNUSED]


def _blocks(
    folder: str, shards: list[Shard], ids: pa.Array, label_of: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the labels (n,) and float64 descriptors (n, K) of each shard, without the rows whose label is UNUSED."""
    for _, table in store.read_shards(folder, ["image_id", "descriptor"], shards, hashed=True):
        rows = _positions(table, ids)
        labels = np.where(rows == UNUSED, UNUSED, label_of[rows])
        used = labels != UNUSED
        yield labels[used], store.vectors(table["descriptor"].filter(pa.array(used))).astype(np.float64)


def _moments(folder: str, shards: list[Shard], ids: pa.Array, label_of: np.ndarray) -> Moments:
    blocks = _blocks(folder, shards, ids, label_of)
    return functools.reduce(Moments.merge, (fit.moments_of(vectors) for _, vectors in blocks))


def _pair_sums(folder: str, shards: list[Shard], ids: pa.Array, label_of: np.ndarray, counts: np.ndarray) -> list[Any]:
    """Returns the moments of the shards' rows x, the sum of 2 n_l/(n_l − 1) x xᵀ, and one pair of arrays per part.

    A pair holds the labels of the part that each shard has, and for each label the sum of its rows in this shard.
    """
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
    """Returns Σ 2/(n_l − 1) s_l s_lᵀ over the labels l of a part. `pieces` are the part's pairs from `_pair_sums`."""
    labels, sums = _sums_by_label(*map(np.concatenate, zip(*pieces, strict=True)))
    return _weighted_squares(sums, 2 / (counts[labels] - 1))


def _sums_by_label(labels: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct labels (m,), and for each of them the sum of its vectors, (m, K)."""
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    return present, np.add.reduceat(vectors[order], starts, axis=0)


def _weighted_squares(vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns Σ_i w_i x_i x_iᵀ (K, K) for the vectors x_i (n, K) and their weights w_i (n,)."""
    total: np.ndarray = (vectors * weights[:, None]).T @ vectors
    return total


def _require_all(total: Moments, used: np.ndarray, folder: str) -> None:
    if total.count != used.sum():
        raise RuntimeError(f"{folder!r}: {total.count} descriptors were summed, not {used.sum()}")


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
    total: Moments = functools.reduce(Moments.merge, blocks, fit.moments_of(np.zeros((0, channels))))
    log.info("learning from %d regions of %d photos", total.count, len(manifest))
    return total


class _Regions:
    """An actor that computes the regions of decoded photos. It holds the network without its pooling."""

    def __init__(self, recipe: Recipe, machine: Resources) -> None:
        self._channels = recipe.source.spec.channels
        self._forward = ThreadPoolExecutor(1).submit(_forward, recipe, machine)  # in a thread, see `pipeline.Network`

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns one row for each region of each photo in `table` (columns `pipeline.DECODED`)."""
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
