"""Writes shards in a thread, so that nothing waits for the disk or the store but a queue that is full."""

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import pyarrow as pa

from dim.extract import store
from dim.extract.identity import Embedding

log = logging.getLogger(__name__)

AHEAD = 4  # shards that wait to be written, or are being written


class Writer:
    """Writes to `folder`, at most `AHEAD` shards behind, what `embedding` made; a failure is raised by the next call.

    A context: its end waits for all that is left, also where the block ended in an error, as what was computed counts.
    """

    def __init__(self, folder: str, embedding: Embedding) -> None:
        self._folder, self._embedding = folder, embedding
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._room = threading.BoundedSemaphore(AHEAD)
        self._failed: BaseException | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._thread.shutdown()
        if error is None:
            self._require_success()

    def write(self, name: str, table: pa.Table) -> None:
        """Takes the shard `name`; its rows are written in the order of their ids."""
        self._room.acquire()
        self._require_success()
        self._thread.submit(self._write, name, table).add_done_callback(self._done)

    def _write(self, name: str, table: pa.Table) -> None:
        if self._failed is None:
            store.write_shard(self._folder, name, store.marked(table.sort_by("image_id"), self._embedding))
            log.info("wrote shard %s of %d rows", name, table.num_rows, extra={"shard": name})

    def _done(self, written: Future[None]) -> None:
        self._failed = self._failed or written.exception()
        self._room.release()

    def _require_success(self) -> None:
        if self._failed is not None:
            raise self._failed
