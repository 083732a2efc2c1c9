"""How shards get into the store, and which rows a resumed run still has to compute.

`Writer` writes finished shards in a thread, so that the pipeline waits only if several shards are queued. `pending`
cleans up after an interrupted run and returns the rows that the finished shards lack.
"""

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import compress
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dim.errors import UserError
from dim.extract import store
from dim.extract.embedding import Embedding
from dim.io import files
from dim.io.storage import for_each, parallel_map

log = logging.getLogger(__name__)

AHEAD = 4  # shards that are queued or being written


class Writer:
    """A context manager that writes shards to the store `folder` in the background.

    After a failed write, the next call of `write`, or the end of the block, raises the error. The block ends only once
    the queued shards are written, even after an error, so that a resumed run need not compute them again.
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
        """Queues a shard, once fewer than `AHEAD` shards are queued. Its rows are written in order of their ids."""
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


def pending(
    folder: str, embedding: Embedding, image_ids: np.ndarray, contents: list[str], retry_failed: bool
) -> np.ndarray:
    """Removes from the shards all rows that no longer count, and returns the rows that have to be computed.

    A row counts if it is selected, its photo is unchanged, its shard is intact, and no earlier shard holds it. With
    `retry_failed`, error rows don't count. If only some shards have an embedding in their metadata, the others may come
    from another store, so they are treated as damaged. Raises UserError if a shard has another embedding than
    `embedding`. `contents` are the content fingerprints of `image_ids`. The result holds ascending positions in both.
    """
    position = {key: row for row, key in enumerate(zip(image_ids, contents, strict=True))}
    done = np.zeros(len(image_ids), dtype=bool)
    dropped: list[str] = []
    kept: dict[str, tuple[str, np.ndarray]] = {}  # new shard → the old shard, and a mask of its rows to keep
    for name, table in _inspect_all(folder, embedding).items():
        if name in kept:
            continue  # an interrupted run wrote this shard in a rewrite, which is now repeated
        if table is None:
            log.warning("shard %s is damaged; its rows are computed again", name)
            dropped.append(name)
            continue
        if isinstance(table, UserError):
            raise table
        keys = list(zip(table["image_id"].to_pylist(), table["content"].to_pylist(), strict=True))
        rows = np.array([position.get(key, -1) for key in keys], dtype=np.int64)
        counts = rows >= 0
        counts[counts] &= ~done[rows[counts]]
        if retry_failed:
            counts &= table["status"].to_numpy(zero_copy_only=False) == store.OK
        done[rows[counts]] = True
        if counts.all():
            continue
        log.info("shard %s: %d of %d rows no longer count", name, int((~counts).sum()), len(counts))
        if counts.any():
            kept[store.shard_name(list(compress(keys, counts)))] = name, counts
        else:
            dropped.append(name)
    # Deletion comes first: a rewritten shard may have the name of a damaged one.
    for_each(partial(store.delete_shard, folder), dropped)
    for_each(partial(_rewrite, folder), kept.items(), store.AT_ONCE)
    return np.flatnonzero(~done)


def _inspect_all(folder: str, embedding: Embedding) -> dict[str, pa.Table | UserError | None]:
    """Maps each finished shard to its rows, to the error raised by reading them, or to None if it is damaged."""
    _delete_unfinished(folder)
    names = store.shards(folder)
    found = list(parallel_map(partial(_inspect, folder, embedding), names, store.AT_ONCE))
    any_mark = any(marked for marked, _ in found)
    return {name: table if marked or not any_mark else None for name, (marked, table) in zip(names, found, strict=True)}


def _inspect(folder: str, embedding: Embedding, name: str) -> tuple[bool, pa.Table | UserError | None]:
    """Whether the shard's metadata has an embedding, and its rows (an error: reading failed; None: damaged)."""
    content = store.whole(folder, name)
    if not content:
        return False, None
    marked = store.EMBEDDING in (pq.read_schema(pa.BufferReader(content)).metadata or {})
    try:
        return marked, store.read_shard(folder, name, ["image_id", "content", "status"], embedding, content=content)
    except UserError as error:
        return marked, error


def _delete_unfinished(folder: str) -> None:
    # An interrupted run leaves half-written files, and shards without statistics.
    whole = {f"{name}{ending}" for name in store.shards(folder) for ending in (".parquet", ".json")}
    left = (name for name in files.names(folder) if name.startswith("part-") and name not in whole)
    files.delete_all(files.join(folder, name) for name in left)


def _rewrite(folder: str, change: tuple[str, tuple[str, np.ndarray]]) -> None:
    """Writes a new shard with the rows of an old one that count, and deletes the old one."""
    new, (old, counts) = change
    # If the process dies between these two steps, both shards hold the rows, and the next run drops one of the two.
    store.write_shard(folder, new, store.read_shard(folder, old).filter(pa.array(counts)))
    store.delete_shard(folder, old)
