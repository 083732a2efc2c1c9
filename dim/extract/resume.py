"""What is left to do: the rows of a selection that the finished shards do not hold."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dim import files
from dim.extract import store
from dim.extract.identity import Embedding

log = logging.getLogger(__name__)


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
    rewritten: set[str] = set()
    names = store.shards(folder)
    whole = {name: _says_what_made_it(content) for name in names if (content := store.whole(folder, name))}
    must_say = any(whole.values())
    for name in names:
        if name in rewritten:
            continue  # a run that died had begun the same
        if name not in whole or (must_say and not whole[name]):
            log.warning("shard %s is damaged; its rows are computed again", name)
            store.delete_shard(folder, name)
            continue
        table = store.read_shard(folder, name, ["image_id", "content", "status"], embedding)
        keys = zip(table["image_id"].to_pylist(), table["content"].to_pylist(), strict=True)
        rows = np.array([position.get(key, -1) for key in keys], dtype=np.int64)
        counts = rows >= 0
        counts[counts] &= ~done[rows[counts]]
        if retry_failed:
            counts &= table["status"].to_numpy(zero_copy_only=False) == store.OK
        done[rows[counts]] = True
        if not counts.all():
            rewritten |= _keep(folder, name, counts)
    return np.flatnonzero(~done)


def _says_what_made_it(shard: bytes) -> bool:
    return store.EMBEDDING in (pq.read_schema(pa.BufferReader(shard)).metadata or {})


def _sweep(folder: str) -> None:
    # Half-written files, and shards whose statistics never came, are of a run that died.
    whole = {f"{name}{ending}" for name in store.shards(folder) for ending in (".parquet", ".json")}
    for name in files.names(folder):
        if name.startswith("part-") and name not in whole:
            files.delete(files.join(folder, name))


def _keep(folder: str, name: str, counts: np.ndarray) -> set[str]:
    """Replaces a shard by one of the rows that count, if there are any; returns its name."""
    kept: set[str] = set()
    if counts.any():
        table = store.read_shard(folder, name).filter(pa.array(counts))
        rows = list(zip(table["image_id"].to_pylist(), table["content"].to_pylist(), strict=True))
        kept.add(store.shard_name(rows))
        # Should we die before the old shard is gone, its rows stand twice, and the next run drops one of each.
        store.write_shard(folder, store.shard_name(rows), table)
    log.info("shard %s: %d of %d rows no longer count", name, int((~counts).sum()), len(counts))
    store.delete_shard(folder, name)
    return kept
