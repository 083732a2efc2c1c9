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

from dim.app import cluster, tasks
from dim.data import isolated
from dim.data.config import Resize
from dim.data.decode import Decoded
from dim.data.limits import DecodeError, Limits
from dim.data.prefetch import Prefetched, prefetch, ranges
from dim.errors import JobFailed
from dim.extract import store
from dim.extract.embedder import Embedder, Recipe, set_up_tensorflow
from dim.extract.resources import Resources
from dim.io import files
from dim.model.spec import Spec

# CPUs that a decoding task reserves: less than one, because the task waits for storage part of the time. An actor must
# reserve another number: Ray Data fuses stages that reserve the same number, and fused stages decode and embed in turn.
DECODER_CPUS = 0.5
UNGUARDED_TRIES = 2  # after dying so many times, a decoding task decodes in guarded worker processes
NETWORK_TRIES = 5  # the most starts of an actor, and the most attempts to embed the same photos
TASKS_PER_CPU = 8  # decoding tasks for each CPU, or more, so that all CPUs end at about the same time
# A window is the photos that an actor takes at a time. If photos differ in shape, a large window has more photos of
# each shape, which share passes. If the actor has a GPU, a large window keeps the GPU busy for longer.
# A large window has at most WINDOW_BATCHES times `images_at_once` photos, and WINDOW_BYTES bytes of decoded photos.
WINDOW_BATCHES, WINDOW_BYTES = 8, 2**28

# The columns of a decoded photo. `width` and `height` are those of the upright photo, before it is resized.
DECODED = pa.schema(
    [(name, pa.string()) for name in ("image_id", "content", "shard", "status", "error")]
    + [("pixels", pa.struct({"data": pa.large_binary(), "height": pa.int32(), "width": pa.int32()}))]
    + [("width", pa.int32()), ("height", pa.int32()), ("several", pa.bool_())]
)

# A function that augments a photo: (pixels (H, W, 3), content fingerprint) → pixels of the same shape.
Change: TypeAlias = Callable[[np.ndarray, str], np.ndarray]


def run(rows: pa.Table, recipe: Recipe, dtype: str, machine: Resources) -> Generator[pa.Table, None, None]:
    """Embeds the photos `rows` (image_id, path, box, content, shard) and streams the store's rows, in any order.

    Yields tables that `embedded` makes, with descriptors of `dtype`, "float32" or "float16".
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
        # An actor runs two calls at once: the first passes of a window run beside the last ones of the previous window.
        compute=ActorPoolStrategy(
            size=machine.workers, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
        ),
    )


def _window(spec: Spec, machine: Resources) -> int:
    """How many photos an actor takes at a time."""
    if spec.resize == "squash" and machine.gpus == 0:
        return machine.images_at_once  # photos of equal shape on a CPU gain nothing from a larger window
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
    ordered: bool = False,
) -> Dataset:
    """Decodes the photos `rows` (image_id, path, box, content, shard) in Ray tasks.

    `size` is the side ("squash") or longest side ("long-side") of a decoded photo, in pixels. With `scaled`, large
    JPEGs are decoded at a fraction of their size. `change` augments each decoded photo in the same task. Returns a lazy
    data set with the columns DECODED, in blocks of about `step` photos. A task decodes many blocks, but holds few at a
    time. With `ordered`, the rows come in the order of `rows`, and a task decodes `step` rows.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    if not cluster.verbose():
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # Ordered results of many rows would wait in memory for those of the task before them.
    most = step if ordered else max(step, rows.num_rows // (TASKS_PER_CPU * tasks.slots()))
    how = {"step": step, "size": size, "resize": resize, "scaled": scaled, "limits": limits, "change": change}
    # `from_arrow` would run a task on a whole CPU per block. A node with a single CPU has none left beside a trainer.
    blocks = [rows.slice(begin, end - begin) for begin, end in ranges(rows["path"], most)]
    dataset = ray.data.from_blocks(blocks)
    dataset.context.execution_options.preserve_order = ordered
    # A task hands on what it yields once it has more than these bytes. By default, they would be 128 MiB.
    dataset.context.target_max_block_size = step * 3 * size**2
    return dataset.map_batches(_decode, fn_kwargs=how, batch_size=None, batch_format="pyarrow", num_cpus=DECODER_CPUS)


def _decode(
    table: pa.Table, *, step: int, size: int, resize: Resize, scaled: bool, limits: Limits, change: Change | None
) -> Generator[pa.Table, None, None]:
    # If workers die again and again, one of these photos kills them.
    function = isolated.decode if cluster.earlier_attempts() >= UNGUARDED_TRIES else isolated.decode_here
    decode = partial(function, size=size, resize=resize, scaled=scaled, limits=limits)
    rows, found = table.to_pylist(), {}
    for photo in prefetch(table["path"].to_pylist()):
        found[photo.position] = _decode_row(rows[photo.position], photo, decode, change)
        if len(found) == step:
            yield _as_table(found)
            found = {}
    if found:
        yield _as_table(found)


def _as_table(found: dict[int, dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([found[position] for position in sorted(found)], schema=DECODED)


def _decode_row(
    row: dict[str, Any], photo: Prefetched, decode: Callable[..., Decoded], change: Change | None
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
    """The decoded photos, uint8 (H, W, 3), of a table with the columns DECODED. Error rows are left out.

    The arrays are read-only views of the table's memory. Copying a photo takes as long as embedding it on a GPU.
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
        # A thread loads the network while tasks decode the first photos. If this constructor raised an error,
        # the caller would get only its text. The thread's error is raised by the first call, as an exception.
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
    """Makes the store's rows from a table with the columns DECODED. The columns `shard` and `several` are kept, too.

    `vectors` (n, D) are the descriptors of the n decoded photos. They become `dtype`, "float32" or "float16".
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
