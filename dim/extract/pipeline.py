"""The Ray Data pipeline: photos are read and decoded by CPU tasks and embedded by a pool of network actors.

Training takes its photos from the same decoding tasks.

One row goes out for each row in: a photo that cannot be decoded becomes an error row with its reason.
"""

import logging
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from dim.app import cluster
from dim.data import isolated, photos
from dim.data.config import Resize
from dim.data.decode import Decoded, DecodeError
from dim.data.limits import Limits
from dim.errors import JobFailed
from dim.extract import store
from dim.extract.embedder import Embedder, Recipe, set_up_tensorflow
from dim.extract.resources import Resources
from dim.io import files
from dim.model.spec import Spec

# A decoder waits for storage part of its time. (Were this what an actor takes, Ray Data would fuse the two stages, and
# they would take turns.)
DECODER_CPUS = 0.5
# Of a decoding task; after these, each of its photos is decoded in a process of its own.
UNGUARDED_TRIES = 2
NETWORK_TRIES = 5
# What an actor takes at a time, where it finds batches of one shape in it, or feeds a GPU.
WINDOW_BATCHES = 8
WINDOW_BYTES = 2**28

PIXELS = pa.struct([("data", pa.large_binary()), ("height", pa.int32()), ("width", pa.int32())])


DECODED = pa.schema(
    [
        ("image_id", pa.string()),
        ("content", pa.string()),
        ("shard", pa.string()),
        ("pixels", PIXELS),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("several", pa.bool_()),
        ("status", pa.string()),
        ("error", pa.string()),
    ]
)


# Makes a variant, of the same shape, of a photo's pixels (H, W, 3), which its `content` decides.
Change: TypeAlias = Callable[[np.ndarray, str], np.ndarray]


def _decode(
    table: pa.Table, *, size: int, resize: Resize, scaled: bool, limits: Limits, change: Change | None
) -> pa.Table:
    # What has killed its worker again and again is a photo among these, not bad luck.
    how = isolated.decode if cluster.earlier_attempts() >= UNGUARDED_TRIES else isolated.decode_here
    decoded = [
        _decode_row(row, photo, how, size, resize, change=change, scaled=scaled, limits=limits)
        for row, photo in zip(table.to_pylist(), photos.prefetch(table["path"].to_pylist()), strict=True)
    ]
    return pa.Table.from_pylist(decoded, schema=DECODED)


def _decode_row(
    row: dict[str, Any],
    photo: photos.Prefetched,
    how: Callable[..., Decoded],
    size: int,
    resize: Resize,
    *,
    change: Change | None,
    **named: Any,
) -> dict[str, Any]:
    outcome = {name: row[name] for name in ("image_id", "content", "shard")}
    try:
        image = how(photo.read(), size, resize, row["box"] and tuple(row["box"]), **named)
    except (DecodeError, OSError) as error:
        reason = str(error) if isinstance(error, DecodeError) else f"cannot read the file: {files.reason(error)}"
        return outcome | {"status": store.ERROR, "error": reason}
    made = change(image.pixels, row["content"]) if change else image.pixels
    height, width, _ = made.shape
    pixels = {"data": made.tobytes(), "height": height, "width": width}
    found = {"width": image.width, "height": image.height, "several": image.several}
    return outcome | found | {"pixels": pixels, "status": store.OK}


def images(table: pa.Table) -> list[np.ndarray]:
    """The photos of a table of DECODED that could be decoded, uint8 (H, W, 3): views of its memory, not to be written.

    A copy of each would take the time of a GPU that feeds on them.
    """
    found: list[np.ndarray] = []
    for chunk in table["pixels"].chunks:
        data, heights, widths = (chunk.field(name) for name in ("data", "height", "width"))
        _, offsets, values = data.buffers()
        ends = np.frombuffer(offsets, np.int64)[data.offset : data.offset + len(data) + 1]
        for row in np.flatnonzero(chunk.is_valid().to_numpy(zero_copy_only=False)):
            pixels = np.frombuffer(values, np.uint8, ends[row + 1] - ends[row], ends[row])
            found.append(pixels.reshape(heights[row].as_py(), widths[row].as_py(), 3))
    return found


class Network:
    """The stage that embeds: an actor that holds the network."""

    def __init__(self, recipe: Recipe, dtype: str, machine: Resources) -> None:
        self._dtype = dtype
        # Made while the first photos are decoded, and not here: what goes wrong here, Ray hands on as text only.
        self._embedder = ThreadPoolExecutor(1).submit(_embedder, recipe, machine)

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of DECODED → the store's rows, as `embedded` says. Raises JobFailed for what kills it always."""
        if cluster.earlier_attempts() >= NETWORK_TRIES:
            raise JobFailed(
                f"the network's process died {NETWORK_TRIES} times over the same photos, as it does where memory is "
                "short; run the same command with a smaller --batch-size"
            )
        return embedded(table, self._embedder.result().embed(images(table)), self._dtype)


def _embedder(recipe: Recipe, machine: Resources) -> Embedder:
    set_up_tensorflow(machine.threads, machine.streams, one_shape=recipe.source.spec.resize == "squash")
    return Embedder(recipe, machine.batch_size, machine.streams)


def embedded(table: pa.Table, vectors: np.ndarray, dtype: str) -> pa.Table:
    """The store's rows, with `shard` and `several`, of a table of DECODED; its photos have descriptors (n, D)."""
    schema = store.schema(vectors.shape[1], dtype)
    ok = table["status"].to_numpy() == store.OK
    values = np.zeros((len(ok), vectors.shape[1]), dtype)
    values[ok] = vectors
    flat = pa.array(values.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=pa.array(~ok))
    columns = [column if name == "descriptor" else table[name] for name in schema.names]
    found = pa.Table.from_arrays(columns, schema=schema)
    return found.append_column("shard", table["shard"]).append_column("several", table["several"])


def _window(spec: Spec, machine: Resources) -> int:
    """How many photos an actor takes at a time."""
    if spec.resize == "squash" and machine.gpus == 0:
        return machine.images_at_once  # all are of one shape, and a CPU has nothing to wait for
    fitting = WINDOW_BYTES // (3 * spec.image_size**2)
    return max(machine.images_at_once, min(WINDOW_BATCHES * machine.images_at_once, fitting))


def decoded(
    rows: pa.Table,
    step: int,
    *,
    size: int,
    resize: Resize,
    limits: Limits,
    scaled: bool = False,
    change: Change | None = None,
) -> Dataset:
    """The data set of `rows` (image_id, path, box, content, shard) decoded, with the columns DECODED, in blocks of
    `step` rows, each of them a task.

    The task also applies `change` to the pixels of each photo.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    if not cluster.verbose():
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    blocks = [rows.slice(start, step) for start in range(0, rows.num_rows, step)]
    how = {"size": size, "resize": resize, "scaled": scaled, "limits": limits, "change": change}
    # `from_arrow` would ask for a task of a whole CPU for each block, which no node of one CPU has beside a trainer.
    return ray.data.from_blocks(blocks).map_batches(
        _decode, fn_kwargs=how, batch_size=None, batch_format="pyarrow", num_cpus=DECODER_CPUS
    )


def staged(rows: pa.Table, recipe: Recipe, machine: Resources, stage: type, arguments: tuple[Any, ...]) -> Dataset:
    """The data set `rows` → decoded for `recipe` → through actors of the class `stage`, made with `arguments`."""
    spec = recipe.source.spec
    DataContext.get_current().max_consecutive_actor_init_deaths = NETWORK_TRIES - 1
    photos = decoded(
        rows,
        machine.images_at_once,
        size=spec.image_size,
        resize=spec.resize,
        limits=recipe.limits,
        scaled=recipe.scaled_decode,
    )
    return photos.map_batches(
        stage,
        fn_constructor_args=arguments,
        batch_size=_window(spec, machine),
        batch_format="pyarrow",
        num_cpus=machine.cpus,
        num_gpus=machine.gpus,
        # While the last passes of a window run, the first of the next do.
        compute=ActorPoolStrategy(
            size=machine.workers, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
        ),
    )


def run(rows: pa.Table, recipe: Recipe, dtype: str, machine: Resources) -> Generator[pa.Table, None, None]:
    """Streams the store's rows, with their `shard` and whether the photo's file holds `several` frames or pages, for
    `rows` (image_id, path, box, content, shard) in any order.
    """
    dataset = staged(rows, recipe, machine, Network, (recipe, dtype, machine))
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
