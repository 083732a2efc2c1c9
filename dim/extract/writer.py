"""Writes shards in a thread, so that nothing waits for the disk or the store but a queue that is full.

What is left to do: the rows of a selection that the finished shards do not hold.
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
from dim.extract.identity import Embedding
from dim.io import files
from dim.io.storage import for_each, parallel_map

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


def pending(
    folder: str, embedding: Embedding, image_ids: np.ndarray, contents: list[str], retry_failed: bool
) -> np.ndarray:
    """Positions (ascending) of the rows to compute, after shards with rows that no longer count have been rewritten.

    A row counts if it is selected, its photo is unchanged, its shard is whole, and no shard before holds it. A shard
    that doesn't say what made it, among others that do, may be of another embedding: it counts as damaged.
    With `retry_failed`, error rows don't count. Raises UserError for a shard that another than `embedding` made.
    """
    position = {key: row for row, key in enumerate(zip(image_ids, contents, strict=True))}
    done = np.zeros(len(image_ids), dtype=bool)
    _sweep(folder)
    names = store.shards(folder)
    looked_at = parallel_map(partial(_looked_at, folder, embedding), names, store.AT_ONCE)
    whole = {name: found for name, found in zip(names, looked_at, strict=True) if found}
    must_say = any(says for says, _ in whole.values())
    dropped: list[str] = []
    kept: dict[str, tuple[str, np.ndarray]] = {}  # by the name of the shard to be: which rows it keeps of which
    for name in names:
        if name in kept:
            continue  # a run that died had begun the same
        says, table = whole.get(name, (False, None))
        if table is None or (must_say and not says):
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
    # These first: one that is to be may have the name of one that is damaged.
    for_each(partial(store.delete_shard, folder), dropped)
    for_each(partial(_replace, folder), kept.items(), store.AT_ONCE)
    return np.flatnonzero(~done)


def _looked_at(folder: str, embedding: Embedding, name: str) -> tuple[bool, pa.Table | UserError] | None:
    """Whether the shard says what made it, and its rows, or why they can't be taken; None where it is damaged."""
    content = store.whole(folder, name)
    if not content:
        return None
    says = store.EMBEDDING in (pq.read_schema(pa.BufferReader(content)).metadata or {})
    try:
        return says, store.read_shard(folder, name, ["image_id", "content", "status"], embedding, content=content)
    except UserError as error:
        return says, error


def _sweep(folder: str) -> None:
    # Half-written files, and shards whose statistics never came, are of a run that died.
    whole = {f"{name}{ending}" for name in store.shards(folder) for ending in (".parquet", ".json")}
    left = (name for name in files.names(folder) if name.startswith("part-") and name not in whole)
    files.delete_all(files.join(folder, name) for name in left)


def _replace(folder: str, change: tuple[str, tuple[str, np.ndarray]]) -> None:
    """Writes the shard to be, of the rows that count of another, and deletes that."""
    new, (old, counts) = change
    # Should we die before the old shard is gone, its rows stand twice, and the next run drops one of each.
    store.write_shard(folder, new, store.read_shard(folder, old).filter(pa.array(counts)))
    store.delete_shard(folder, old)
