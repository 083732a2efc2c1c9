"""A manifest of many rows: read, selected, fingerprinted, and a finished store of it resumed.

    python tests/benchmarks/manifest.py --rows 10000000

The paths repeat a few real files. The store is written first, by another process, with descriptors of `--dimension`
float16 values. With `--ray`, tasks of a local Ray do the work, else threads do. Prints one JSON line: for each step its
seconds, and the most memory that the process has taken so far (its peak, VmHWM, in MiB). The steps: `read` and
`select` the manifest; `fingerprint` the photos; `resume` with an unchanged manifest; `longer`, with a manifest that
has one more row at its beginning, so that each shard's ids are read; and, if asked for by `--verify`, `verify`,
without a log, so that each shard is read as a whole.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from search import EMBEDDING

from dim.app import cluster
from dim.data import manifest as manifests
from dim.extract import identity, parts, resume, store
from dim.extract.plan import Plan, default_shard_rows
from dim.extract.shard_log import ShardLog
from dim.io import files

FILES = 1000


def written(folder: str, rows: int) -> str:
    """Writes a manifest of `rows` photos, and the files that its paths repeat."""
    files.make_folder(f"{folder}/photos")
    for number in range(FILES):
        files.write_bytes(f"{folder}/photos/{number}.jpg", bytes(number))
    numbers = np.arange(rows)
    table = pa.table(
        {
            "image_id": pc.binary_join_element_wise("photo-", pa.array(numbers).cast(pa.string()), ""),
            "path": pc.binary_join_element_wise("photos/", pa.array(numbers % FILES).cast(pa.string()), ".jpg", ""),
            "label": pa.array(numbers // 100).cast(pa.string()),
            "split": pa.repeat("train", rows),
        }
    )
    pq.write_table(table, f"{folder}/photos.parquet", row_group_size=2**20)
    return f"{folder}/photos.parquet"


def planned(manifest: str) -> Plan:
    """The plan of an extraction."""
    selected = manifests.read(manifest).select("train")
    contents = identity.fingerprint_photos(selected).contents
    return Plan(selected, contents, default_shard_rows(len(selected)))


def write_store(manifest: str, out: str, dimension: int) -> None:
    """Writes a store of all photos, whose descriptors are random."""
    plan = planned(manifest)
    files.make_folder(out)
    log = ShardLog(out, {})
    random = np.random.default_rng(0)
    schema = store.schema(dimension, "float16")
    for name, rows in plan.names.items():
        ids, contents = plan.manifest.ids[rows], plan.contents[rows]
        vectors = random.standard_normal(len(ids) * dimension, dtype=np.float32).astype(np.float16)
        table = pa.table(
            {
                "image_id": ids,
                "descriptor": pa.FixedSizeListArray.from_arrays(pa.array(vectors), dimension),
                "status": pa.repeat(store.OK, len(ids)),
                **{kind: pa.nulls(len(ids), schema.field(kind).type) for kind in ("error", "width", "height")},
                "content": contents,
            }
        )
        log.add(name, store.write_shard(out, name, store.marked(table.cast(schema), EMBEDDING)))
    log.write()


def peak() -> int:
    """The most memory that this process has taken, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) // 1024


def measured(manifest: str, out: str, verify: bool) -> dict[str, dict[str, float]]:
    """The seconds and the peak of each step."""
    steps: dict[str, dict[str, float]] = {}

    def step(name: str, work: Callable[[], Any]) -> Any:
        start, before = time.perf_counter(), time.process_time()
        found = work()
        seconds, cpu = time.perf_counter() - start, time.process_time() - before
        steps[name] = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_mib": peak()}
        return found

    whole = step("read", lambda: manifests.read(manifest))
    selected = step("select", lambda: whole.select("train"))
    contents = step("fingerprint", lambda: identity.fingerprint_photos(selected).contents)
    plan = Plan(selected, contents, default_shard_rows(len(selected)))
    known = parts.logged(out)
    assert step("resume", lambda: resume.found(out, EMBEDDING, plan, known, False)).done.all()
    shifted = pa.concat_tables([selected.table.slice(0, 1).set_column(0, "image_id", [["new"]]), selected.table])
    longer = Plan(
        manifests.Manifest(manifest, shifted),
        pa.chunked_array([*contents[:1].chunks, *contents.chunks]),
        plan.shard_rows,
    )
    done = step("longer", lambda: resume.found(out, EMBEDDING, longer, known, False)).done
    assert not done[0] and done[1:].all()
    if verify:
        found = step("verify", lambda: resume.found(out, EMBEDDING, plan, {}, False))
        assert found.done.all() and found.kept == known
    return steps


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--dimension", type=int, default=8)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--verify", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest, out = written(folder, options.rows), f"{folder}/out"
        writer = multiprocessing.get_context("spawn").Process(
            target=write_store, args=(manifest, out, options.dimension)
        )
        writer.start()
        writer.join()
        assert writer.exitcode == 0
        with cluster.connected() if options.ray else contextlib.nullcontext():
            steps = measured(manifest, out, options.verify)
    print(json.dumps(vars(options) | {"cpus": os.cpu_count(), "steps": steps}))


if __name__ == "__main__":
    main()
