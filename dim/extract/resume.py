"""Which rows a resumed run still has to compute, and which rows of the store no longer count.

A shard whose name is in the plan and whose size is in the log holds the rows of the plan. It is not read, except for
the embedding of one such shard. Of the other shards, tasks read the ids and content fingerprints. A shard that is not
in the log, because the run before was killed, is read as a whole. `found` only reads; `cleaned` and `remove` remove
what no longer counts.
"""

import logging
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dim.app import tasks
from dim.extract import finished_shards, store
from dim.extract.embedding import Embedding
from dim.extract.finished_shards import SHARD, STATISTICS, is_shard
from dim.extract.plan import Plan
from dim.extract.shard_log import ShardLog
from dim.io import files, lease
from dim.io.seal import Facts
from dim.io.storage import parallel_map

log = logging.getLogger(__name__)

_SHARDS_A_TASK = 16
_BYTES_AT_ONCE = 2**28  # of shards that a task reads as a whole
_KEYS = ["image_id", "content", "status"]


@dataclass(frozen=True)
class Found:
    """What a store holds of a plan.

    `done`, bool (N,), are the rows that count, `errors` of which are error rows; `dropped` rows belong to no row of the
    manifest. `kept` are the facts of the shards that stay as they are. `changed` maps each other shard to a mask of its
    rows that count; None stands for none.
    """

    done: np.ndarray
    errors: int
    dropped: int
    kept: dict[str, Facts]
    changed: dict[str, np.ndarray | None]


class _Shard(NamedTuple):
    """A shard to read: its size, the facts in the log, if any, and whether there are statistics of an older dim."""

    name: str
    size: int
    facts: Facts | None
    has_statistics: bool


class _Read(NamedTuple):
    """What was read of a shard: its facts, the columns _KEYS, and whether it names its embedding.

    There are no keys if the shard is damaged.
    """

    facts: Facts
    keys: pa.Table | None
    marked: bool


_DAMAGED = _Read({}, None, False)


def found(folder: str, embedding: Embedding, plan: Plan, known: dict[str, Facts], retry_failed: bool) -> Found:
    """Finds the rows of `plan` in the store `folder`, whose log says `known`.

    A row counts if its photo is in the manifest and unchanged, its shard is intact, and no other shard holds it. With
    `retry_failed`, error rows don't count. If only some shards have an embedding in their metadata, the others may come
    from another store, so they are treated as damaged. Raises UserError if a shard has another embedding than
    `embedding`.
    """
    shards = {shard.name: shard for shard in _listed(folder)}
    logged = {name: known[name] for name in shards.keys() & known.keys() if known[name]["bytes"] == shards[name].size}
    for name in sorted(logged.keys() & plan.own.keys())[:1]:
        # Names don't depend on the embedding. So one shard is looked at, in case run.json was lost, but not the log.
        try:
            store.read_shard(folder, name, ["status"], embedding)
        except store.Damaged:
            del logged[name]
    kept: dict[str, Facts] = {}
    done = np.zeros(len(plan.manifest), dtype=bool)
    for name, rows in plan.own.items():
        if name in logged and not (retry_failed and logged[name]["errors"]):
            kept[name] = logged[name]
            done[rows] = True
    settled = kept.keys() | (plan.names.keys() - plan.own.keys())  # another driver looks after the latter
    others = [shard._replace(facts=logged.get(name)) for name, shard in shards.items() if name not in settled]
    result = Found(done, sum(facts["errors"] for facts in kept.values()), 0, kept, {})
    return _with_others(result, plan, others, _read_all(folder, embedding, others, logged), retry_failed)


def _listed(folder: str) -> list[_Shard]:
    sizes = files.sizes(folder)
    names = sorted(name.removesuffix(SHARD) for name in sizes if is_shard(name))
    return [_Shard(name, sizes[f"{name}{SHARD}"], None, f"{name}{STATISTICS}" in sizes) for name in names]


def _with_others(first: Found, plan: Plan, others: list[_Shard], read: list[_Read], retry_failed: bool) -> Found:
    """Adds to `first` the rows that the shards `others` hold."""
    changed: dict[str, np.ndarray | None] = {}
    for shard, (_, keys, _) in zip(others, read, strict=True):
        if keys is None:
            log.warning("shard %s is damaged; its rows are computed again", shard.name)
            changed[shard.name] = None
    sound = [(shard.name, one.facts, one.keys) for shard, one in zip(others, read, strict=True) if one.keys]
    if not sound:
        return Found(first.done, first.errors, 0, first.kept, changed)
    keys = pa.concat_tables(table for *_, table in sound)
    rows = _rows_of(keys, plan)
    ok = pc.equal(keys["status"], store.OK).to_numpy()
    counts = rows >= 0
    counts[counts] &= plan.asked[rows[counts]] & ~first.done[rows[counts]]
    if retry_failed:
        counts &= ok
    counts = _first_of_each(rows, counts, ok)
    done, kept = first.done.copy(), dict(first.kept)
    done[rows[counts]] = True
    ends = np.cumsum([table.num_rows for *_, table in sound])
    for (name, facts, _), own in zip(sound, np.split(counts, ends[:-1]), strict=True):
        if own.all():
            kept[name] = facts
            continue
        log.info("shard %s: %d of %d rows no longer count", name, int((~own).sum()), len(own))
        changed[name] = own if own.any() else None
    return Found(done, first.errors + int((counts & ~ok).sum()), int((rows < 0).sum()), kept, changed)


def _rows_of(keys: pa.Table, plan: Plan) -> np.ndarray:
    """The row of the plan's manifest that each of `keys` belongs to, int64; −1 if none has its id and content."""
    rows = pc.index_in(keys["image_id"], plan.manifest.ids)
    same = pc.equal(plan.contents.take(rows), keys["content"])
    return np.asarray(pc.if_else(pc.fill_null(same, False), rows, -1).to_numpy()).astype(np.int64)


def _first_of_each(rows: np.ndarray, counts: np.ndarray, ok: np.ndarray) -> np.ndarray:
    """Which of the `rows` that count come first among those of the same row, descriptors before errors: bool."""
    order = np.flatnonzero(counts)
    order = order[np.argsort(~ok[order], kind="stable")]
    _, first = np.unique(rows[order], return_index=True)
    found = np.zeros(len(rows), dtype=bool)
    found[order[first]] = True
    return found


def _read_all(folder: str, embedding: Embedding, shards: list[_Shard], logged: dict[str, Facts]) -> list[_Read]:
    units = [shards[start : start + _SHARDS_A_TASK] for start in range(0, len(shards), _SHARDS_A_TASK)]
    found = tasks.spread(_read_unit, units, (files.absolute(folder), embedding), light=True)
    read = [one for unit in tasks.in_order(found) for one in unit]
    if any(one.keys and not one.marked for one in read):
        unread = logged.keys() - {shard.name for shard in shards}
        if any(one.marked for one in read) or any(_is_marked(folder, name) for name in sorted(unread)[:1]):
            return [one if one.marked else _DAMAGED for one in read]
    return read


def _is_marked(folder: str, name: str) -> bool:
    with files.opened(files.join(folder, f"{name}{SHARD}")) as file:
        return store.EMBEDDING in (pq.read_schema(file).metadata or {})


def _read_unit(shards: list[_Shard], folder: str, embedding: Embedding) -> list[_Read]:
    unknown = max((shard.size for shard in shards if shard.facts is None), default=1)
    most = max(1, min(store.AT_ONCE, _BYTES_AT_ONCE // max(1, unknown)))
    return list(parallel_map(partial(_read, folder, embedding), shards, most))


def _read(folder: str, embedding: Embedding, shard: _Shard) -> _Read:
    try:
        if shard.facts:
            table, facts = store.read_shard(folder, shard.name, _KEYS, embedding), shard.facts
        else:
            content = finished_shards.Shard(folder, shard.name, {}, shard.size).read()
            table = store.read_shard(folder, shard.name, embedding=embedding, content=content)
            facts = store.facts_of(table, content)
    except store.Damaged:
        return _DAMAGED
    if shard.has_statistics and not finished_shards.statistics(folder, shard.name).items() <= facts.items():
        return _DAMAGED
    return _Read(facts, table.select(_KEYS), store.EMBEDDING in (table.schema.metadata or {}))


def cleaned(folder: str, found: Found) -> ShardLog:
    """Removes from the store `folder` all rows that don't count, and what an interrupted run left half-written.

    Returns the log of the shards that remain. No other driver may write the folder.
    """
    shard_log = ShardLog(folder, found.kept)
    strange = (name for name in files.names(folder) if name.startswith("part-") and not is_shard(name))
    files.delete_all(files.join(folder, name) for name in strange)
    remove(folder, found.changed, shard_log, lease.claims())
    return shard_log


def remove(
    folder: str, changed: dict[str, np.ndarray | None], shard_log: ShardLog, claims: tuple[lease.Claim, ...]
) -> None:
    """Removes from the shards `changed` (see `Found`) the rows that don't count, and enters the rest in `shard_log`.

    The tasks that write the rest do so under the `claims`.
    """
    # Deletion comes first: a rewritten shard may have the name of a damaged one.
    gone = (name for name, own in changed.items() if own is None)
    files.delete_all(files.join(folder, f"{name}{SHARD}") for name in gone)
    changes = [(name, own) for name, own in changed.items() if own is not None]
    for _, (name, facts) in tasks.spread(_rewritten, changes, (files.absolute(folder), claims)):
        shard_log.add(name, facts)
    shard_log.write()


def _rewritten(change: tuple[str, np.ndarray], folder: str, claims: tuple[lease.Claim, ...]) -> tuple[str, Facts]:
    """Writes a new shard with the rows of an old one that count, and deletes the old one. Returns name and facts."""
    old, counts = change
    table = store.read_shard(folder, old).filter(pa.array(counts))
    new = store.shard_name(table["image_id"], table["content"])
    # If the process dies between these two steps, both shards hold the rows, and the next run drops one of the two.
    with lease.under(claims):
        facts = store.write_shard(folder, new, table)
        store.delete_shard(folder, old)
    return new, facts
