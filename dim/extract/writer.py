"""Collects the rows that the pipeline makes into shards, and writes the shards in a thread.

The pipeline waits only if several shards are queued.
"""

import logging
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc

from dim.app.progress import step
from dim.extract import store
from dim.extract.embedding import Embedding
from dim.extract.shard_log import ShardLog
from dim.io.tables import require_each_once

log = logging.getLogger(__name__)

AHEAD = 4  # shards that are queued or being written


class Writer:
    """A context manager that writes shards to the store `folder` in the background, and enters them in `shard_log`.

    After a failed write, the next call of `write`, or the end of the block, raises the error. The block ends only once
    the queued shards are written, even after an error, so that a resumed run need not compute them again.
    """

    def __init__(self, folder: str, embedding: Embedding, shard_log: ShardLog) -> None:
        self._folder, self._embedding, self._log = folder, embedding, shard_log
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._room = threading.BoundedSemaphore(AHEAD)
        self._failed: BaseException | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with step("writing the last shards"):
            self._room.acquire()
            self._thread.submit(self._end).add_done_callback(self._done)
            self._thread.shutdown()
        if error is None:
            self._require_success()

    def write(self, name: str, table: pa.Table) -> None:
        """Queues a shard, once fewer than `AHEAD` shards are queued. Its rows are written in order of their ids."""
        self._room.acquire()
        self._require_success()
        self._thread.submit(self._write, name, table).add_done_callback(self._done)

    def _write(self, name: str, table: pa.Table) -> None:
        if self._failed is None:
            facts = store.write_shard(self._folder, name, store.marked(table.sort_by("image_id"), self._embedding))
            self._log.add(name, facts)
            log.info("wrote shard %s of %d rows", name, table.num_rows, extra={"shard": name})

    def _end(self) -> None:
        if self._failed is None:
            self._log.write()

    def _done(self, written: Future[None]) -> None:
        self._failed = self._failed or written.exception()
        self._room.release()

    def _require_success(self) -> None:
        if self._failed is not None:
            raise self._failed


def write_all(batches: Iterable[pa.Table], rows: pa.Table, writer: Writer, where: str) -> None:
    """Writes each shard of the plan `rows` (image_id, shard) once `batches`, in any order, have all of its rows.

    The rows of a shard are consecutive in `rows`. Raises RuntimeError, naming the store `where`, if a row is missing,
    is there twice or is not in the plan.
    """
    sizes = {count["values"].as_py(): count["counts"].as_py() for count in rows["shard"].value_counts()}
    starts = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
    waiting = dict(sizes)
    open_shards: dict[str, list[pa.Table]] = {}
    for batch in batches:
        for name in batch["shard"].unique().to_pylist():
            part = batch.filter(pc.equal(batch["shard"], name)).drop_columns("shard")
            open_shards.setdefault(name, []).append(part)
            waiting[name] -= part.num_rows
            if waiting[name] <= 0:
                whole = pa.concat_tables(open_shards.pop(name))
                require_each_once(rows["image_id"].slice(starts[name], sizes[name]), whole["image_id"], where)
                writer.write(name, whole)
    finished = pa.array([name for name, count in waiting.items() if count <= 0], pa.string())
    if len(finished) < len(sizes):
        require_each_once(rows["image_id"], rows["image_id"].filter(pc.is_in(rows["shard"], finished)), where)
