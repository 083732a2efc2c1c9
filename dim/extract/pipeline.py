"""The Ray Data pipeline: CPU tasks read and decode photos, a pool of network actors embeds them.

`run` streams an extraction: `decoded` (tasks) → `Network` (actors) → the store's rows. Whitening puts its own actors
behind the same decoding (`staged`). Training takes the decoded photos themselves (`decoded`).

Each input row gives one output row. A photo that cannot be decoded becomes an error row that gives the reason.
"""

import logging
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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

# CPUs of a decoding task, which waits for storage part of the time. An actor must ask for another number, because Ray
# Data fuses stages that ask for the same number, and then decoding and embedding take turns.
DECODER_CPUS = 0.5
UNGUARDED_TRIES = 2  # a decoding task that has died so many times decodes each photo in a process of its own
NETWORK_TRIES = 5  # tries of an actor, to start or to embed the same photos
# An actor takes several batches at a time if photos differ in shape (it batches equal shapes) or if it feeds a GPU.
WINDOW_BATCHES, WINDOW_BYTES = 8, 2**28  # at most so many batches, and decoded bytes

# The columns of a decoded photo. `width` and `height` are those of the upright photo, before it is resized.
DECODED = pa.schema(
    [(name, pa.string()) for name in ("image_id", "content", "shard", "status", "error")]
    + [("pixels", pa.struct({"data": pa.large_binary(), "height": pa.int32(), "width": pa.int32()}))]
    + [("width", pa.int32()), ("height", pa.int32()), ("several", pa.bool_())]
)

# Augments a photo: its pixels (H, W, 3) and its content fingerprint → pixels of the same shape.
Change: TypeAlias = Callable[[np.ndarray, str], np.ndarray]


def run(rows: pa.Table, recipe: Recipe, dtype: str, machine: Resources) -> Generator[pa.Table, None, None]:
    """Embeds the photos `rows` (image_id, path, box, content, shard) and streams the store's rows, in any order.

    Yields tables as `embedded` makes them, with descriptors of `dtype`, "float32" or "float16".
    """
    dataset = staged(rows, recipe, machine, Network, (recipe, dtype, machine))
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")


def staged(rows: pa.Table, recipe: Recipe, machine: Resources, stage: type, arguments: tuple[Any, ...]) -> Dataset:
    """Decodes `rows` for `recipe` and sends them through actors of the class `stage`, made with `arguments`."""
    spec, step = recipe.source.spec, machine.images_at_once
    DataContext.get_current().max_consecutive_actor_init_deaths = NETWORK_TRIES - 1
    dataset = decoded(
        rows, step, size=spec.image_size, resize=spec.resize, limits=recipe.limits, scaled=recipe.scaled_decode
    )
    return dataset.map_batches(
        stage,
        fn_constructor_args=arguments,
        batch_size=_window(spec, machine),
        batch_format="pyarrow",
        num_cpus=machine.cpus,
        num_gpus=machine.gpus,
        # Two calls at once: the first passes of a window run beside the last passes of the previous window.
        compute=ActorPoolStrategy(
            size=machine.workers, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
        ),
    )


def _window(spec: Spec, machine: Resources) -> int:
    """How many photos an actor takes at a time."""
    if spec.resize == "squash" and machine.gpus == 0:
        return machine.images_at_once  # all have one shape, and a CPU has nothing to wait for
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
    """Decodes the photos `rows` (image_id, path, box, content, shard) in Ray tasks of `step` photos each.

    `size` is the side ("squash") or longest side ("long-side") of a decoded photo, in pixels. With `scaled`, large
    JPEGs are decoded at a fraction of their size. `change` augments each decoded photo in the same task. Returns a lazy
    data set with the columns DECODED, one block a task.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    if not cluster.verbose():
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    blocks = [rows.slice(start, step) for start in range(0, rows.num_rows, step)]
    how = {"size": size, "resize": resize, "scaled": scaled, "limits": limits, "change": change}
    # `from_arrow` asks for a task of a whole CPU for each block. A node with one CPU and a trainer has none left.
    return ray.data.from_blocks(blocks).map_batches(
        _decode, fn_kwargs=how, batch_size=None, batch_format="pyarrow", num_cpus=DECODER_CPUS
    )


def _decode(
    table: pa.Table, *, size: int, resize: Resize, scaled: bool, limits: Limits, change: Change | None
) -> pa.Table:
    # If workers die again and again, one of these photos kills them.
    function = isolated.decode if cluster.earlier_attempts() >= UNGUARDED_TRIES else isolated.decode_here
    decode = partial(function, size=size, resize=resize, scaled=scaled, limits=limits)
    rows = zip(table.to_pylist(), photos.prefetch(table["path"].to_pylist()), strict=True)
    return pa.Table.from_pylist([_decode_row(row, photo, decode, change) for row, photo in rows], schema=DECODED)


def _decode_row(
    row: dict[str, Any], photo: photos.Prefetched, decode: Callable[..., Decoded], change: Change | None
) -> dict[str, Any]:
    outcome = {name: row[name] for name in ("image_id", "content", "shard")}
    try:
        image = decode(photo.read(), box=row["box"] and tuple(row["box"]))
    except (DecodeError, OSError) as error:
        reason = str(error) if isinstance(error, DecodeError) else f"cannot read the file: {files.reason(error)}"
        return outcome | {"status": store.ERROR, "error": reason}
    made = change(image.pixels, row["content"]) if change else image.pixels
    height, width, _ = made.shape
    pixels = {"data": made.tobytes(), "height": height, "width": width}
    found = {"width": image.width, "height": image.height, "several": image.several}
    return outcome | found | {"pixels": pixels, "status": store.OK}


def images(table: pa.Table) -> list[np.ndarray]:
    """The decoded photos of a table with the columns DECODED, uint8 (H, W, 3), error rows left out.

    They are read-only views of the table's memory: copying each photo would take as long as a GPU takes to embed it.
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
        # A thread loads the network while tasks decode the first photos. An error in this constructor would reach the
        # caller as text only; an error in the thread is raised by the first call.
        self._embedder = ThreadPoolExecutor(1).submit(_embedder, recipe, machine)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Embeds a table with the columns DECODED (see `embedded`). Raises JobFailed if its photos kill the actor."""
        if cluster.earlier_attempts() >= NETWORK_TRIES:
            raise JobFailed(
                f"the network's process died {NETWORK_TRIES} times over the same photos, as it does if memory is "
                "short; run the same command with a smaller --batch-size"
            )
        return embedded(table, self._embedder.result().embed(images(table)), self._dtype)


def _embedder(recipe: Recipe, machine: Resources) -> Embedder:
    set_up_tensorflow(machine.threads, machine.streams, one_shape=recipe.source.spec.resize == "squash")
    return Embedder(recipe, machine.batch_size, machine.streams)


def embedded(table: pa.Table, vectors: np.ndarray, dtype: str) -> pa.Table:
    """The store's rows, plus `shard` and `several` (frames or pages), for a table with the columns DECODED.

    `vectors` (n, D) are the descriptors of the n decoded photos; they are stored as `dtype`, "float32" or "float16".
    """
    schema = store.schema(vectors.shape[1], dtype)
    ok = table["status"].to_numpy() == store.OK
    values = np.zeros((len(ok), vectors.shape[1]), dtype)
    values[ok] = vectors
    flat = pa.array(values.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=pa.array(~ok))
    columns = [column if name == "descriptor" else table[name] for name in schema.names]
    found = pa.Table.from_arrays(columns, schema=schema)
    return found.append_column("shard", table["shard"]).append_column("several", table["several"])
