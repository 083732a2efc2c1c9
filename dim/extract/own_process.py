"""The extraction of a few photos in the process of the job, without Ray: for example, of the query of a search.

A local Ray and its network actor take 5 s to 40 s to start, and embed no faster than this process, which has the same
CPUs. For many photos Ray is worth its start: it starts processes that die again, so that the job goes on.
"""

from collections.abc import Generator
from functools import partial
from pathlib import Path

import pyarrow as pa

from dim.app import progress
from dim.data import isolated
from dim.extract import photo_tables
from dim.extract.config import ExtractConfig
from dim.extract.embedder import CPU_BATCH, Embedder, Recipe, set_up_tensorflow
from dim.extract.resources import of_own_process

FEW = CPU_BATCH  # photos, which are in memory together


def suffices(config: ExtractConfig, images: int) -> bool:
    """Whether the extraction of `images` photos by `config` needs no Ray of its own. Ray assigns GPUs, if there are."""
    on_cpus = config.gpus_per_worker == 0 or not any(Path("/dev").glob("nvidia[0-9]*"))
    return images <= FEW and config.workers is None and on_cpus


def run(rows: pa.Table, recipe: Recipe, dtype: str, batch_size: int | None) -> Generator[pa.Table, None, None]:
    """Does what `dim.extract.pipeline.run` does, and yields a single table."""
    spec = recipe.source.spec
    table = decoded(rows, recipe)
    machine = of_own_process(batch_size, spec.image_size)
    with progress.step("loading the network"):
        set_up_tensorflow(machine.threads, machine.streams, one_shape=spec.resize == "squash")
        embedder = Embedder(recipe, machine.batch_size, machine.streams)
    yield photo_tables.embedded(table, embedder.embed(photo_tables.images(table)), dtype)


def decoded(rows: pa.Table, recipe: Recipe) -> pa.Table:
    """Decodes the photos `rows` (image_id, path, box, content, shard) for `recipe`: a table of `photo_tables.DECODED`.

    A photo that hangs or kills the process that decodes it becomes an error row.
    """
    spec = recipe.source.spec
    decoder = partial(
        isolated.decode, size=spec.image_size, resize=spec.resize, scaled=recipe.scaled_decode, limits=recipe.limits
    )
    (table,) = photo_tables.decode(rows, decoder, step=rows.num_rows)
    return table
