"""Importers of benchmarks as distributed: a benchmark's folder → its photos, labels, splits and grades.

An importer is a function that takes the folder and returns a `Benchmark`. The importers of Oxford and Paris are in
`dim.data.oxford_paris`, that of ILIAS in `dim.data.ilias`. To add an importer, write the function, enter it in
`dim.data.import_job.IMPORTERS`, and add the benchmark's name to `dim.data.config.LAYOUTS`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from dim.data import photos
from dim.data.decode import Box
from dim.errors import UserError, quoted
from dim.io import files, tables


@dataclass(frozen=True)
class BenchmarkPhoto:
    """A row of the manifest that import.py writes. `path` is relative to the benchmark's folder."""

    image_id: str
    path: str
    label: str | None = None
    split: str | None = None
    role: str | None = None
    box: Box | None = None
    measures: Mapping[str, float] | None = None  # further columns of the manifest


@dataclass(frozen=True)
class Benchmark:
    """The result of an importer. `photos` has rows for all photos that the benchmark names, even if files are missing.

    `grades` is the ground truth as (query_id, image_id, grade). It is empty if labels are the ground truth. `published`
    is the number of photo files that were published, or None if lists in the benchmark name all photos.
    `problems` maps the path of each missing file that is not a photo to what is wrong.
    """

    photos: list[BenchmarkPhoto]
    grades: list[tuple[str, str, str]] = field(default_factory=list)
    published: int | None = None
    problems: dict[str, str] = field(default_factory=dict)


SOURCE = "SOURCE is the folder of the benchmark as distributed"
_CUB_TRAINING_CLASSES = 100


def cub(source: str) -> Benchmark:
    """Imports Caltech-UCSD Birds 200-2011 (Wah et al., 2011).

        images.txt               image_id path      the path is below images/
        image_class_labels.txt   image_id class_id
        classes.txt              class_id name

    The first 100 classes are the split train, and the others are test. (train_test_split.txt is not for retrieval.)
    Raises UserError if a list is missing or malformed, or if an image has no known class.
    """
    class_of = {image: number for _, (image, number) in words_of_lines(source, "image_class_labels.txt", columns=2)}
    name_of = {number: name for _, (number, name) in words_of_lines(source, "classes.txt", columns=2)}
    rows = []
    for where, (image, path) in words_of_lines(source, "images.txt", columns=2):
        number = class_of.get(image, "")
        if number not in name_of or not re.fullmatch(r"\d{1,9}", number):
            raise UserError(
                f"{where}: image {quoted(image)} has the class {quoted(number)}, which classes.txt does not number"
            )
        split = "train" if int(number) <= _CUB_TRAINING_CLASSES else "test"
        rows.append(BenchmarkPhoto(path.rpartition(".")[0], f"images/{path}", name_of[number], split))
    return Benchmark(rows)


def sop(source: str) -> Benchmark:
    """Imports Stanford Online Products (Song et al., CVPR 2016).

        Ebay_train.txt, Ebay_test.txt   image_id class_id super_class_id path      the first line names the columns

    The two lists have different classes. Raises UserError if a list is missing or malformed.
    """
    rows = []
    for split in ("train", "test"):
        for _, (_, label, _, path) in words_of_lines(source, f"Ebay_{split}.txt", columns=4, header=True):
            rows.append(BenchmarkPhoto(path.rpartition(".")[0], path, label, split))
    return Benchmark(rows)


def ukbench(source: str) -> Benchmark:
    """Imports UKBench (Nistér and Stewénius, CVPR 2006): 10,200 photos ukbenchNNNNN.jpg, in any sub-folder.

    Four photos with consecutive numbers show one object, and each photo is a query. An object with fewer files still
    gets four rows, so that its other photos count as missing. Raises UserError if no file has such a name.
    """
    found = photos_by_stem(source, file_names(source), r"ukbench\d{5}")
    objects = sorted({int(name.removeprefix("ukbench")) // 4 for name in found})
    names = {f"ukbench{4 * number + view:05d}": f"{number:04d}" for number in objects for view in range(4)}
    rows = [BenchmarkPhoto(name, found.get(name, f"full/{name}.jpg"), label, "test") for name, label in names.items()]
    return Benchmark(rows, published=10200)


def holidays(source: str) -> Benchmark:
    """Imports INRIA Holidays (Jégou et al., ECCV 2008): 1,491 photos NNNNMM.jpg of 500 groups NNNN, in any sub-folder.

    Photo NNNN00 is the query of group NNNN. If its file is missing, the query still gets a row, so that it counts as
    missing. Raises UserError if no file has such a name.
    """
    found = photos_by_stem(source, file_names(source), r"\d{6}")
    role_of = dict.fromkeys(found, "database") | {f"{name[:4]}00": None for name in found}
    rows = [
        BenchmarkPhoto(name, found.get(name, f"jpg/{name}.jpg"), label=name[:4], split="test", role=role_of[name])
        for name in sorted(role_of)
    ]
    return Benchmark(rows, published=1491)


_SPLIT_OF_USAGE = {"Public": "val", "Private": "test", "Ignored": None}


def gldv2(source: str) -> Benchmark:
    """Imports Google Landmarks Dataset v2, the retrieval task (Weyand et al., CVPR 2020).

        index.csv                    id                 761,757 photos, index/a/b/c/abc….jpg
        retrieval_solution_v2.1.csv  id, images, Usage  117,577 queries, test/a/b/c/abc….jpg

    `images` are the matching ids, separated by spaces. Papers report results for Usage Public and for Usage Private
    separately. So queries with Usage Public become the split val, and queries with Usage Private the split test. The
    116,448 queries with Usage Ignored show no landmark and are left out.
    Raises UserError if a table is missing or malformed, or names an unknown photo.
    """
    ids = [image for (image,) in _rows(source, "index.csv", "id")]
    rows = [BenchmarkPhoto(image, _gldv2_path("index", image), role="database") for image in ids]
    index, grades = set(ids), []
    solutions = [name for name in files.names(source) if re.fullmatch(r"retrieval_solution.*\.csv", name)]
    if len(solutions) != 1:
        raise UserError(f"{source!r} must hold one retrieval_solution*.csv, not {', '.join(solutions) or 'none'}")
    for number, (query, images, usage) in enumerate(_rows(source, solutions[0], "id", "images", "Usage"), start=2):
        where = f"{source}/{solutions[0]}, line {number}"
        if usage not in _SPLIT_OF_USAGE:
            raise UserError(f"{where}: Usage is {quoted(usage)}, not {', '.join(_SPLIT_OF_USAGE)}")
        if usage == "Ignored":
            continue
        rows.append(BenchmarkPhoto(query, _gldv2_path("test", query), split=_SPLIT_OF_USAGE[usage], role="query"))
        for image in dict.fromkeys(images.split()):
            if image not in index:
                raise UserError(f"{where}: image {quoted(image)} is not in index.csv")
            grades.append((query, image, "good"))
    return Benchmark(rows, grades)


def _rows(source: str, name: str, *columns: str) -> list[tuple[str, ...]]:
    uri = files.join(source, name)
    table = tables.read(uri)
    tables.require_columns(table, columns, uri)
    return list(zip(*(table[column].fill_null("").to_pylist() for column in columns), strict=True))


def _gldv2_path(folder: str, image: str) -> str:
    return "/".join([folder, *image[:3], f"{image}.jpg"])


def file_names(source: str) -> list[str]:
    """Returns the paths of the files below `source`, relative to it. Raises UserError if there is no such folder."""
    if not files.is_folder(source):
        raise UserError(f"no folder {source!r}; {SOURCE}")
    return photos.file_names(source)


def photos_by_stem(source: str, names: list[str], pattern: str = ".+") -> dict[str, str]:
    """Maps stem (file name without suffix) → path, for the JPEGs in `names` whose stem matches `pattern`.

    Raises UserError if no JPEG matches, or if two that match have the same stem.
    """
    found: dict[str, str] = {}
    for path in names:
        name, _, suffix = path.rpartition("/")[2].rpartition(".")
        if suffix.lower() not in ("jpg", "jpeg") or not re.fullmatch(pattern, name):
            continue
        if name in found:
            raise UserError(f"{source!r} has {name!r} twice, as {found[name]!r} and {path!r}; keep one of them")
        found[name] = path
    if not found:
        raise UserError(f"{source!r} holds no photo {pattern}.jpg; {SOURCE}")
    return found


def words_of_lines(source: str, name: str, columns: int, header: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Yields (place, words) for each line of the text file `name` that is not blank.

    The place is the file and the line number, for messages. If `header` is true, the first line is skipped. Raises
    UserError if the file is missing or is not UTF-8 text, or if a line does not have `columns` words.
    """
    lines = numbered_lines(source, name)
    for where, line in islice(lines, int(header), None):
        words = line.split()
        if not words:
            continue
        if len(words) != columns:
            raise UserError(f"{where}: expected {columns} words, got {quoted(line)}")
        yield where, words


def numbered_lines(source: str, name: str) -> Iterator[tuple[str, str]]:
    """Yields (place, line) for each line of the text file `name`. See `words_of_lines` for the place and the errors."""
    uri = files.join(source, name)
    try:
        text = read_bytes(uri).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{uri!r} is not UTF-8 text: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        yield f"{uri!r}, line {number}", line


def read_bytes(uri: str) -> bytes:
    """Reads a file of a benchmark. Raises UserError if that fails."""
    try:
        return files.read_bytes(uri)
    except FileNotFoundError as error:
        raise UserError(f"no file {uri!r}; {SOURCE}") from error
    except OSError as error:
        raise UserError(f"cannot read {uri!r}: {files.reason(error)}") from error
