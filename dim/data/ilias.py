"""The importer of ILIAS (Kordopatis-Zilos et al., arXiv:2502.11748), whose distractors are photos in tars."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.data import photos
from dim.data.benchmarks import SOURCE, Benchmark, BenchmarkPhoto, numbered_lines
from dim.data.decode import Box
from dim.data.tarred_photos import TarredPhotos
from dim.errors import UserError, quoted
from dim.io import csv_files, files
from dim.io.storage import parallel_map

QUERIES, POSITIVES = "image_ids/image_query_ids.txt", "image_ids/positive_ids.txt"
DISTRACTORS, MINI = "image_ids/distractor_ids.txt.gz", "image_ids/mini_ilias_yfcc100m_ids.txt"
TARS = "yfcc100m"
ALL, FEW, NONE = "100m", "5m", "none"


def ilias(source: str) -> Benchmark:
    """Imports the queries and positives.

        image_ids/image_query_ids.txt            id,…                OBJECT/query/Qxxx_yy
        image_ids/positive_ids.txt               id,scale,clutter    OBJECT/pos/Pxxx_zz
        ilias_core/OBJECT/query/Qxxx_yy.jpg                          and so for each other id
        ilias_core/OBJECT/query/Qxxx_yy_bbox.txt x y width height    one or more boxes of the object, in pixels

    The label is the object's name. The box of a query holds all boxes of its file; without the file, the query has no
    box. The manifest gets the columns `scale` and `clutter` of the positives. Raises UserError if a list is missing or
    malformed.
    """
    queries = [words[0] for _, words in _lines(source, QUERIES)]
    boxes = list(parallel_map(lambda image_id: _box(source, _path(image_id)), queries))
    rows = [
        BenchmarkPhoto(image_id, _path(image_id), image_id.partition("/")[0], "test", "query", box)
        for image_id, box in zip(queries, boxes, strict=True)
    ]
    for where, words in _lines(source, POSITIVES):
        if len(words) != 3 or not all(map(_is_number, words[1:])):
            raise UserError(f"{where}: expected id,scale,clutter, got {quoted(','.join(words))}")
        measures = {"scale": float(words[1]), "clutter": float(words[2])}
        label = words[0].partition("/")[0]
        rows.append(BenchmarkPhoto(words[0], _path(words[0]), label, "test", "database", measures=measures))
    without = [_box_file(row.path) for row in rows if row.role == "query" and row.box is None]
    return Benchmark(rows, problems=dict.fromkeys(without, photos.MISSING))


def distractors(source: str, wanted: str | None) -> TarredPhotos | None:
    """The distractors that --distractors asks for: `ALL` (also if it is None), `FEW`, `NONE` or a folder of tars.

        yfcc100m/*.tar                           each has 100,000 photos KEY.jpg, whose ids are TAR/KEY
        image_ids/distractor_ids.txt.gz          the ids of all of them; read for ALL, and for a folder
        image_ids/mini_ilias_yfcc100m_ids.txt    the keys of mini-ILIAS; read for FEW

    Raises UserError if a list or all tars are missing.
    """
    if wanted == NONE:
        return None
    folder = files.join(source, TARS) if wanted in (None, ALL, FEW) else str(wanted)
    tars = [files.join(folder, name) for name in files.names(folder) if name.endswith(".tar")]
    if not tars:
        raise UserError(
            f"{folder!r} holds no .tar; download the distractors, or give --distractors {NONE} or a folder of tars"
        )
    if wanted == FEW:
        return TarredPhotos(tars, chosen=pc.replace_substring_regex(_ids(source, MINI), "^.*/", ""))
    listed = _listed(source)
    if wanted in (None, ALL):
        known = {files.name(tar) for tar in tars}
        tars = sorted([*tars, *(files.join(folder, name) for name in listed if name not in known)])
    return TarredPhotos(tars, listed=listed)


def _lines(source: str, name: str) -> list[tuple[str, list[str]]]:
    """The place and the words of each line of the list `name`, whose columns are separated by commas."""
    found = [(where, line.strip().split(",")) for where, line in numbered_lines(source, name) if line.strip()]
    if not found:
        raise UserError(f"{files.join(source, name)!r} names no photo; {SOURCE}")
    return found


def _is_number(word: str) -> bool:
    try:
        return 0 <= float(word) < np.inf
    except ValueError:
        return False


def _path(image_id: str) -> str:
    return f"ilias_core/{image_id.removesuffix('.jpg')}.jpg"


def _box_file(path: str) -> str:
    return f"{path.removesuffix('.jpg')}_bbox.txt"


def _box(source: str, path: str) -> Box | None:
    """The smallest box (x1, y1, x2, y2) around all boxes of the photo `path`; None if it has no file of boxes."""
    uri = files.join(source, _box_file(path))
    try:
        lines = files.read_bytes(uri).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    boxes = []
    for number, words in enumerate((line.split() for line in lines), start=1):
        if not words:
            continue
        if len(words) != 4 or not all(map(_is_number, words[2:])):
            raise UserError(f"{uri!r}, line {number}: expected x y width height, got {quoted(lines[number - 1])}")
        boxes.append([float(word) for word in words])
    if not boxes:
        raise UserError(f"{uri!r} holds no box; {SOURCE}")
    corners = np.array(boxes)
    corners[:, 2:] += corners[:, :2]
    low, high = np.maximum(corners[:, :2].min(axis=0), 0), corners[:, 2:].max(axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _ids(source: str, name: str) -> pa.ChunkedArray:
    return pa.chunked_array([batch["line"] for batch in _batches(source, name)], pa.string())


def _listed(source: str) -> dict[str, int]:
    """The number of distractors in each tar, by its name; none if their list was not downloaded."""
    if not files.exists(files.join(source, DISTRACTORS)):
        return {}
    counts: dict[str, int] = {}
    for batch in _batches(source, DISTRACTORS):
        for tar in pc.value_counts(pc.replace_substring_regex(batch["line"], "/.*$", "")):
            counts[tar["values"].as_py()] = counts.get(tar["values"].as_py(), 0) + tar["counts"].as_py()
    return counts


def _batches(source: str, name: str) -> Iterator[pa.RecordBatch]:
    """Reads a text file of ids, one a line, in batches. It may be compressed by gzip."""
    uri = files.join(source, name)
    try:
        with files.opened(uri) as file:
            yield from csv_files.lines(pa.CompressedInputStream(file, "gzip") if name.endswith(".gz") else file)
    except FileNotFoundError as error:
        raise UserError(f"no file {uri!r}; download it, or give --distractors a folder of tars") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read the ids in {uri!r}: {files.reason(error)}") from error
