"""The two passes of a re-ranking over photos, as stages of the extraction pipeline: actors that hold the network.

`Describe` describes queries. `Match` compares each photo with the queries whose lists have it. Both take decoded photos
whose image_id is a number: of the query, or of the photo.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from dim.data.decode import Box, clipped
from dim.extract import photo_tables, store
from dim.extract.embedder import Forward, Recipe, set_up_tensorflow
from dim.extract.resources import Resources, require_a_try_left
from dim.localise.config import Method
from dim.localise.head import NetworkHead, of_network
from dim.localise.methods import METHODS, SIZES, Description, Seen

MATCHED = pa.schema(
    [("photo", pa.int64()), ("query", pa.int64()), ("score", pa.float64()), ("inliers", pa.int64())]
    + [(name, pa.float64()) for name in ("x1", "y1", "x2", "y2")]
)


@dataclass(frozen=True)
class Shared:
    """What all actors of a pass share: the `boxes` of photos, by their number, and for `Match` also the queries' lists.

    Query q has the description encoded[q], or none if it is null. The queries that list photo p are those in
    queries[starts[p]:starts[p + 1]].
    """

    boxes: Mapping[int, Box]
    encoded: pa.Array = field(default_factory=lambda: pa.nulls(0, pa.large_binary()))
    starts: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    queries: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def descriptions_of(self, photo: int) -> dict[int, Description]:
        """The descriptions of the queries that list `photo`, by the query's number."""
        numbers = self.queries[self.starts[photo] : self.starts[photo + 1]].tolist()
        encoded = {number: self.encoded[number].as_py() for number in numbers}
        return {number: _decoded(one) for number, one in encoded.items() if one is not None}


def _encoded(description: Description) -> bytes:
    file = io.BytesIO()
    np.savez(file, **description)  # type: ignore[arg-type]
    return file.getvalue()


def _decoded(content: bytes) -> Description:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


class _Maps:
    """The network up to the layer that is pooled, at some sizes of the photos, and its head."""

    def __init__(self, recipe: Recipe, machine: Resources, sizes: Sequence[float]) -> None:
        set_up_tensorflow(machine.threads, machine.streams, one_shape=recipe.source.spec.resize == "squash")
        import tensorflow as tf  # noqa: PLC0415

        from dim.model import layers, network  # noqa: PLC0415

        spec = recipe.source.spec
        model = network.load(recipe.source, recipe.precision)
        maps = network.part(model, None, spec.layer)

        def at(size: float) -> Forward:
            function = tf.function(
                lambda images: tf.cast(maps(layers.resized(images, size), training=False), tf.float32),
                input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)],
            )
            return Forward(function, machine.batch_size, machine.streams)

        self._forwards = [at(size) for size in sizes]
        self.head: NetworkHead = of_network(model, spec, recipe.whitening)

    def of(self, images: Sequence[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
        """The maps (H, W, K) of each of `images`, uint8 (h, w, 3), one for each size."""
        found = []
        for forward in self._forwards:
            parts, order = forward(images)
            maps = [one for part in parts for one in part]
            found.append([maps[place] for place in np.argsort(order)])
        return list(zip(*found, strict=True))


class _Stage:
    """An actor of either pass. `shared` is a `Shared`, or its reference in Ray's object store."""

    def __init__(
        self, method: Method, recipe: Recipe, machine: Resources, shared: Shared | ray.ObjectRef, sizes: Sequence[float]
    ) -> None:
        self._method = METHODS[method]
        self._shared: Shared = ray.get(shared) if isinstance(shared, ray.ObjectRef) else shared
        self._maps = ThreadPoolExecutor(1).submit(_Maps, recipe, machine, sizes)  # in a thread, see `pipeline.Network`

    def _photos(self, table: pa.Table) -> Iterator[tuple[int, tuple[int, int, int, int], Seen]]:
        """Yields each decoded photo's number, the part (x1, y1, x2, y2) that the network sees, and what it sees."""
        require_a_try_left()
        network = self._maps.result()
        maps = network.of(photo_tables.images(table))
        rows = table.filter(pc.equal(table["status"], store.OK)).select(["image_id", "width", "height"]).to_pylist()
        for row, found in zip(rows, maps, strict=True):
            number, width, height = int(row["image_id"]), row["width"], row["height"]
            part = clipped(self._shared.boxes.get(number, (0, 0, width, height)), width, height)
            width, height = part[2] - part[0], part[3] - part[1]
            longer = max(width, height)
            yield number, part, Seen(width / longer, height / longer, found, network.head)


class Describe(_Stage):
    """The first pass: a row with the columns query and description for each photo that could be decoded."""

    def __init__(self, method: Method, recipe: Recipe, machine: Resources, shared: Shared | ray.ObjectRef) -> None:
        super().__init__(method, recipe, machine, shared, SIZES)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Describes the decoded photos of `table`."""
        found = {number: _encoded(self._method.describe(seen)) for number, _, seen in self._photos(table)}
        columns = [pa.array(found.keys(), pa.int64()), pa.array(found.values(), pa.binary())]
        return pa.table(columns, ["query", "description"])


class Match(_Stage):
    """The second pass: rows with the columns `MATCHED`, one for each decoded photo and query that lists it."""

    def __init__(self, method: Method, recipe: Recipe, machine: Resources, shared: Shared | ray.ObjectRef) -> None:
        super().__init__(method, recipe, machine, shared, (1.0,))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Compares the decoded photos of `table` with the queries that list them."""
        found = [MATCHED.empty_table()]
        for number, (left, top, right, bottom), seen in self._photos(table):
            descriptions = self._shared.descriptions_of(number)
            if not descriptions:
                continue
            matches = self._method.match(seen, list(descriptions.values()))
            boxes = (matches.boxes * max(right - left, bottom - top) + [left, top, left, top]).T
            columns = [np.full(len(boxes.T), number), [*descriptions], matches.scores, matches.inliers, *boxes]
            found.append(pa.table([pa.array(column, from_pandas=True) for column in columns], MATCHED))
        return pa.concat_tables(found)
