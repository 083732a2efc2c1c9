"""The job import.py: a benchmark as distributed → manifest, ground truth, and a list of missing or broken photos."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa

from dim.app.config import one_of
from dim.app.output_folder import opened
from dim.data import benchmarks, manifest, oxford_paris, photos
from dim.data.benchmarks import Benchmark
from dim.data.config import EMBEDDINGS, ImportConfig
from dim.data.ground_truth import COLUMNS
from dim.errors import UserError, count_reasons
from dim.io import csv_files, files, tables
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
    problems = _problems(benchmark, config)
    reasons = problems["problem"].to_pylist()
    with opened(config.out, "import", config, {"source": config.source}) as output:
        tables.write(output.path(MANIFEST), rows.table)
        written = manifest.checked(rows.uri, tables.read(rows.uri))
        tables.require_each_once([photo.image_id for photo in benchmark.photos], written.image_ids, repr(rows.uri))
        csv_files.write_escaped(output.path(PROBLEMS), problems)
        if reasons:
            why = count_reasons(reasons)
            log.warning("photos that could not be read: %d (%s); see %s", len(reasons), why, output.path(PROBLEMS))
        if benchmark.grades:
            columns = zip(*benchmark.grades, strict=True)
            tables.write(output.path(GROUND_TRUTH), pa.table(dict(zip(COLUMNS, columns, strict=True))))
        else:
            files.delete(output.path(GROUND_TRUTH))  # an earlier import into the same folder may have left it
        return output.finish(_result(benchmark, config.layout, reasons))


def _manifest(benchmark: Benchmark, config: ImportConfig) -> pa.Table:
    rows = benchmark.photos
    paths = photos.manifest_paths([files.join(config.source, photo.path) for photo in rows], config.out)
    columns = {"image_id": [photo.image_id for photo in rows], "path": paths}
    columns |= {name: [getattr(photo, name) for photo in rows] for name in ("label", "split", "role")}
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
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
    return pa.table([paths, list(reasons.values())], schema=_PROBLEMS)


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
