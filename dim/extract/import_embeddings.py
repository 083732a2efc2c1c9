"""The job `import.py embeddings`: descriptors made elsewhere → a store like that of extract.py.

All rows are checked before the first one is written. Then the pieces of the input become shards, in Ray tasks if
RAY_ADDRESS names a cluster, else in threads. A shard is named after its rows, so that a run after a kill writes only
the shards that are missing.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from dim.app import cluster, output_folder
from dim.app.config import flag_name
from dim.app.tasks import in_order, spread
from dim.data.config import ImportConfig
from dim.errors import UserError, quoted
from dim.extract import finished_shards, identity, store, vector_files, vector_ids
from dim.extract.embedding import NamedEmbedding
from dim.extract.vector_files import Piece
from dim.io import files, lease, seal
from dim.io.seal import Facts

_TOLERANCE = 0.01  # largest difference of a norm from 1; float16 rounds a norm by less


@dataclass(frozen=True)
class _Unit:
    """A piece of the input, and a table of the ids (image_id) of its rows.

    Ray sends the rows of a slice of a table, but the whole array of a slice of an array.
    """

    piece: Piece
    ids: pa.Table

    def blocks(self) -> Iterator[tuple[int, pa.Array, np.ndarray]]:
        """Yields blocks of rows: the row of the piece that the block begins with, the ids, and the vectors (n, D)."""
        ids, start = pa.concat_arrays(self.ids["image_id"].chunks), 0
        for block in self.piece.blocks():
            yield start, ids.slice(start, len(block)), block
            start += len(block)


def import_embeddings(config: ImportConfig) -> dict[str, Any]:
    """Runs the job: writes the store `config.out`, and returns what the job prints as its last line.

    Raises:
        UserError: A flag is missing or wrong, the files don't fit together, `config.out` holds something else, or a row
            has an id that is empty or repeated, NaN, infinity, only zeros or, without --normalise, a norm that is not
            1. Nothing has been written.
    """
    if config.name is None:
        raise UserError("import.py embeddings needs --name NAME: the network that made them, such as dinov2-vitb14")
    found = vector_files.find(config.source, config.ids, config.id_column, config.vector_column)
    vector_ids.require_ids(found.ids, config.ids or config.source)
    embedding = NamedEmbedding(config.name, found.pieces[0].dimension)
    _require_same(config.out, embedding)
    ids = pa.table({"image_id": found.ids})
    units = [
        _Unit(replace(piece, uri=files.absolute(piece.uri)), ids.slice(start, piece.rows))
        for piece, start in zip(found.pieces, found.starts, strict=True)
    ]
    inputs = {"source": config.source, "ids": config.ids}
    uris = sorted({piece.uri for piece in found.pieces})
    before = [(info.size, info.mtime_ns) for info in files.infos(uris)]
    with cluster.joined():
        if not cluster.is_local():
            cluster.require_shared(uris)
        _require_sound(units, config.normalise)
        with output_folder.opened(config.out, "import", config, inputs, embedding.as_json()) as out:
            shards = _write(units, files.absolute(config.out), embedding, config.normalise)
            for uri, known, info in zip(uris, before, files.infos(uris), strict=True):
                if known != (info.size, info.mtime_ns):
                    raise seal.changed(uri)
            whole = {f"{name}{finished_shards.SHARD}" for name in shards}
            left = (name for name in files.names(config.out) if name.startswith("part-") and name not in whole)
            # They are of a run that was killed, or of an earlier version of the input.
            files.delete_all(files.join(config.out, name) for name in left)
            rows = len(ids)
            result = {"layout": config.layout, "name": config.name, "dimension": embedding.dimension, "images": rows}
            result |= {"store": found.pieces[0].dtype, "shards": len(shards)}
            return out.finish(result, finished_shards.sealed(dict(sorted(shards.items()))))


def _require_same(out: str, embedding: NamedEmbedding) -> None:
    record = output_folder.record_of(out)
    if record is None or record["job"] != "import":
        return  # `opened` refuses the folder of another job
    if not identity.holds_descriptors(record):
        raise UserError(f"{out!r} holds a benchmark that import.py imported; choose another --out")
    identity.require_equal(identity.of_record(record, out), out, embedding, f"{flag_name('name')} {embedding.name}")


def _require_sound(units: list[_Unit], normalise: bool) -> None:
    """Raises UserError for the first row whose vector cannot be used."""
    faults = spread(_fault, units, [normalise], stage="checking", size=lambda unit: len(unit.ids), unit="rows")
    if found := [fault for fault in in_order(faults) if fault]:
        raise UserError(found[0])


def _fault(unit: _Unit, normalise: bool) -> str | None:
    """What is wrong with the first unusable row of `unit`, if there is one."""
    try:
        for start, ids, block in unit.blocks():
            lengths = _lengths(block)
            wrong = ~np.isfinite(lengths) | (lengths == 0)
            if not normalise:
                wrong |= np.abs(lengths - 1) > _TOLERANCE
            if wrong.any():
                row = int(np.argmax(wrong))
                where = f"{unit.piece.uri!r}: row {unit.piece.first + start + row + 1} (id {quoted(ids[row].as_py())})"
                return f"{where} {_described(lengths[row])}"
    except UserError as error:  # a row of a Parquet file is not a vector
        return str(error)
    return None


def _described(length: float) -> str:
    if not np.isfinite(length):
        return "has NaN or infinity in it; leave it out"
    if length == 0:
        return "holds only zeros, so it has no direction; leave it out"
    return f"has the norm {length:.6g}, not 1; give --normalise"


def _lengths(block: np.ndarray) -> np.ndarray:
    wide = block.astype(np.float64)  # no square of a float32 overflows
    lengths: np.ndarray = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    return lengths


@dataclass(frozen=True)
class _Target:
    """What tasks write: shards of the store `folder`, under the `claims`, unless they are `present` and intact."""

    folder: str
    embedding: NamedEmbedding
    normalise: bool
    present: frozenset[str]
    claims: tuple[lease.Claim, ...]


def _write(units: list[_Unit], folder: str, embedding: NamedEmbedding, normalise: bool) -> dict[str, Facts]:
    """Writes all shards that `folder` lacks. Returns the facts of all, by name."""
    target = _Target(folder, embedding, normalise, frozenset(store.shards(folder)), lease.claims())
    parts = spread(_write_unit, units, [target], stage="importing", size=lambda unit: len(unit.ids), unit="rows")
    return {name: facts for _, shards in parts for name, facts in shards.items()}


def _write_unit(unit: _Unit, target: _Target) -> dict[str, Facts]:
    """Writes each block of `unit` as a shard. Returns their facts, by name."""
    shards = {}
    for _, ids, block in unit.blocks():
        name = _name_of(ids, block, target.normalise)
        facts = _facts(target.folder, name) if name in target.present else None
        if facts is None:
            vectors = _normalised(block) if target.normalise else block
            table = store.marked(_table(ids, vectors), target.embedding)
            with lease.under(target.claims):
                facts = store.write_shard(target.folder, name, table)
        shards[name] = facts
    return shards


def _facts(folder: str, name: str) -> Facts | None:
    """The facts of a shard that a run before has written; None if it is damaged."""
    content = files.read_bytes(files.join(folder, f"{name}{finished_shards.SHARD}"))
    try:
        return store.facts_of(store.read_shard(folder, name, content=content), content)
    except store.Damaged:
        return None


def _name_of(ids: pa.Array, block: np.ndarray, normalise: bool) -> str:
    """A name that is the hash of all that the shard is made of."""
    content = hashlib.sha256(f"{normalise} {block.dtype} {block.shape}".encode())
    content.update(pa.record_batch([ids], ["image_id"]).serialize())
    content.update(block.tobytes())
    return f"part-{content.hexdigest()[:16]}"


def _normalised(block: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = (block / _lengths(block)[:, None]).astype(block.dtype)
    return scaled


def _table(ids: pa.Array, block: np.ndarray) -> pa.Table:
    schema = store.schema(block.shape[1], block.dtype.name)
    descriptors = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), block.shape[1])
    known = {"image_id": ids, "descriptor": descriptors, "status": pa.repeat(pa.scalar(store.OK), len(ids))}
    columns = [known.get(field.name, pa.nulls(len(ids), field.type)) for field in schema]
    return pa.table(columns, schema=schema)
