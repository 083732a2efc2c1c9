"""The Ray Data pipeline: CPU tasks read and decode photos, a pool of network actors embeds them.

`run` streams an extraction: `decoded` (tasks) → `Network` (actors) → the store's rows. Whitening puts its own actors
behind the same decoding (`staged`). Training takes the decoded photos themselves (`decoded`).

Each input row gives one output row. A photo that cannot be decoded becomes an error row that gives the reason.
"""

import logging
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from dim.app import cluster, tasks
from dim.data import isolated
from dim.data.config import Resize
from dim.data.limits import Limits
from dim.data.prefetch import ranges
from dim.extract import photo_tables
from dim.extract.embedder import Embedder, Recipe, set_up_tensorflow
from dim.extract.photo_tables import Change
from dim.extract.resources import NETWORK_TRIES, Resources, require_a_try_left
from dim.model.spec import Spec

# CPUs that a decoding task reserves: less than one, because the task waits for storage part of the time. An actor must
# reserve another number: Ray Data fuses stages that reserve the same number, and fused stages decode and embed in turn.
DECODER_CPUS = 0.5
UNGUARDED_TRIES = 2  # after dying so many times, a decoding task decodes in guarded worker processes
TASKS_PER_CPU = 8  # decoding tasks for each CPU, or more, so that all CPUs end at about the same time
# A window is the photos that an actor takes at a time. If photos differ in shape, a large window has more photos of
# each shape, which share passes. If the actor has a GPU, a large window keeps the GPU busy for longer.
# A large window has at most WINDOW_BATCHES times `images_at_once` photos, and WINDOW_BYTES bytes of decoded photos.
WINDOW_BATCHES, WINDOW_BYTES = 8, 2**28


def run(rows: pa.Table, recipe: Recipe, dtype: str, machine: Resources) -> Generator[pa.Table, None, None]:
    """Embeds the photos `rows` (image_id, path, box, content, shard) and streams the store's rows, in any order.

    Yields tables that `photo_tables.embedded` makes, with descriptors of `dtype`, "float32" or "float16".
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
    data set with the columns `photo_tables.DECODED`, in blocks of about `step` photos. A task decodes many blocks, but
    holds few at a time. With `ordered`, the rows come in the order of `rows`, and a task decodes `step` rows.
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
    decoder = partial(function, size=size, resize=resize, scaled=scaled, limits=limits)
    yield from photo_tables.decode(table, decoder, step, change)


class Network:
    """The stage that embeds: an actor that holds the network."""

    def __init__(self, recipe: Recipe, dtype: str, machine: Resources) -> None:
        self._dtype = dtype
        # A thread loads the network while tasks decode the first photos. If this constructor raised an error,
        # the caller would get only its text. The thread's error is raised by the first call, as an exception.
        self._embedder = ThreadPoolExecutor(1).submit(_embedder, recipe, machine)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Makes the store's rows from a table of decoded photos. Raises JobFailed if its photos kill the actor."""
        require_a_try_left()
        return photo_tables.embedded(table, self._embedder.result().embed(photo_tables.images(table)), self._dtype)


def _embedder(recipe: Recipe, machine: Resources) -> Embedder:
    set_up_tensorflow(machine.threads, machine.streams, one_shape=recipe.source.spec.resize == "squash")
    return Embedder(recipe, machine.batch_size, machine.streams)
