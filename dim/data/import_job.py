"""The job import.py: a benchmark as distributed → manifest, ground truth, and a list of missing or broken photos."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dim.app.config import one_of
from dim.app.output_folder import opened, record_of
from dim.data import benchmarks, grocery, manifest, oxford_paris, photos
from dim.data.benchmarks import Benchmark
from dim.data.config import EMBEDDINGS, ImportConfig
from dim.data.ground_truth import COLUMNS
from dim.data.ilias import distractors, ilias
from dim.data.manifest import Manifest
from dim.data.tarred_photos import TarredPhotos
from dim.errors import UserError, count_reasons
from dim.io import csv_files, files, local_copies, tables
from dim.io.storage import REQUESTS_AT_ONCE

log = logging.getLogger(__name__)

# The importer of each name in `dim.data.config.LAYOUTS`.
IMPORTERS: dict[str, Callable[[str], Benchmark]] = {
    "oxford5k": oxford_paris.oxford5k,
    "paris6k": oxford_paris.paris6k,
    "roxford5k": oxford_paris.roxford5k,
    "rparis6k": oxford_paris.rparis6k,
    "holidays": benchmarks.holidays,
    "ukbench": benchmarks.ukbench,
    "gldv2": benchmarks.gldv2,
    "sop": benchmarks.sop,
    "cub": benchmarks.cub,
    "grocery": grocery.grocery,
    "grocery-lists": grocery.grocery_lists,
    "ilias": ilias,
}

MANIFEST, GROUND_TRUTH, PROBLEMS = "manifest.parquet", "ground_truth.parquet", "problems.csv"
_PROBLEMS = pa.schema([("path", pa.string()), ("problem", pa.string())])


def import_benchmark(config: ImportConfig) -> dict[str, Any]:
    """Runs the job import.py, which imports a benchmark.

    Writes manifest.parquet, ground_truth.parquet (unless labels are the ground truth) and problems.csv, which lists
    missing and corrupt photos. These photos keep their rows in the manifest, so that evaluation counts them.

    Returns what the job prints as its last line. Raises UserError if the folder does not have the benchmark's layout or
    holds none of its photos. Then nothing is written.
    """
    benchmark = IMPORTERS[one_of("layout", config.layout, [*IMPORTERS, EMBEDDINGS])](config.source)
    rows = manifest.checked(files.join(config.out, MANIFEST), _manifest(benchmark, config))
    tarred = distractors(config.source, config.distractors) if config.layout == "ilias" else None
    problems = _problems(benchmark, config)
    if (record_of(config.out) or {}).get("embedding"):
        raise UserError(f"{config.out!r} holds descriptors that import.py imported; choose another --out")
    with opened(config.out, "import", config, {"source": config.source}) as output:
        in_tars, broken = _write_manifest(output.path(MANIFEST), rows, tarred)
        problems = pa.concat_tables([problems, broken])
        reasons = problems["problem"].to_pylist()
        csv_files.write_escaped(output.path(PROBLEMS), problems)
        if reasons:
            why = count_reasons(reasons)
            log.warning("photos that could not be read: %d (%s); see %s", len(reasons), why, output.path(PROBLEMS))
        if benchmark.grades:
            columns = zip(*benchmark.grades, strict=True)
            tables.write(output.path(GROUND_TRUTH), pa.table(dict(zip(COLUMNS, columns, strict=True))))
        else:
            files.delete(output.path(GROUND_TRUTH))  # an earlier import into the same folder may have left it
        result = _result(benchmark, config.layout, reasons)
        return output.finish(result | ({"distractors": in_tars, "tars": len(tarred.tars)} if tarred else {}))


def _write_manifest(uri: str, own: Manifest, tarred: TarredPhotos | None) -> tuple[int, pa.Table]:
    """Writes the rows `own`, then a row group for each tar. Returns the number of rows of all tars, and their problems.

    Raises RuntimeError if the file lacks a row, and UserError if no tar has a photo.
    """
    ids, rows, problems = own.table["image_id"], 0, []
    schema = own.table.schema
    with local_copies.path_to_write(uri) as path, pq.ParquetWriter(path, schema) as writer:
        writer.write_table(own.table)
        for tar, found, problem in tarred.rows(files.parent(files.absolute(uri))) if tarred else ():
            problems += [(tar, problem)] if problem else []
            rows += found.num_rows
            known = {name: found[name] for name in found.column_names}
            known |= {"split": pa.repeat("test", len(found)), "role": pa.repeat("database", len(found))}
            empty = {field.name: pa.nulls(len(found), field.type) for field in schema}
            writer.write_table(pa.table(empty | known, schema=schema))
        if tarred and not rows:
            raise UserError(f"none of the {len(tarred.tars)} tars has a photo; {problems[0][0]!r}: {problems[0][1]}")
    if (written := tables.row_count(uri)) != len(ids) + rows:
        raise RuntimeError(f"{uri!r} has {written} rows, not {len(ids) + rows}")
    broken = pa.table([[tar for tar, _ in problems], [problem for _, problem in problems]], schema=_PROBLEMS)
    return rows, broken


def _manifest(benchmark: Benchmark, config: ImportConfig) -> pa.Table:
    rows = benchmark.photos
    paths = photos.manifest_paths([files.join(config.source, photo.path) for photo in rows], config.out)
    columns = {"image_id": [photo.image_id for photo in rows], "path": paths}
    columns |= {name: [getattr(photo, name) for photo in rows] for name in ("label", "split", "role")}
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    for name in dict.fromkeys(name for photo in rows for name in photo.measures or ()):
        numbers = [photo.measures.get(name) if photo.measures else None for photo in rows]
        table = table.append_column(name, pa.array(numbers, pa.float64()))
    if any(photo.box for photo in rows):
        boxes = zip(*(photo.box or (None,) * 4 for photo in rows), strict=True)
        for name, values in zip(manifest.BOX, boxes, strict=True):
            table = table.append_column(name, pa.array(values, pa.float64()))
    return table


def _problems(benchmark: Benchmark, config: ImportConfig) -> pa.Table:
    """Returns the path and the problem of each photo that is missing or has a broken header."""
    uris = list(dict.fromkeys(files.join(config.source, photo.path) for photo in benchmark.photos))
    reasons = photos.unreadable(uris, partial(photos.opens, limits=config.limits), REQUESTS_AT_ONCE)
    if len(reasons) == len(uris):
        raise UserError(f"none of the {len(uris)} photos of {config.source!r} is there; the first: {uris[0]}")
    paths = photos.manifest_paths([uris[row] for row in reasons], config.out)
    others = photos.manifest_paths([files.join(config.source, path) for path in benchmark.problems], config.out)
    return pa.table([paths + others, [*reasons.values(), *benchmark.problems.values()]], schema=_PROBLEMS)


def _result(benchmark: Benchmark, layout: str, problems: list[str]) -> dict[str, Any]:
    count = len({photo.path for photo in benchmark.photos})
    if benchmark.published not in (None, count):
        log.warning("%s was published with %d photos; this copy has %d", layout, benchmark.published, count)
    missing = problems.count(photos.MISSING)
    return {
        "layout": layout,
        "images": len(benchmark.photos),
        "photos": count,
        "queries": sum(photo.role != "database" and photo.split != "train" for photo in benchmark.photos),
        "grades": len(benchmark.grades),
        "missing": missing,
        "corrupt": len(problems) - missing,
    }
