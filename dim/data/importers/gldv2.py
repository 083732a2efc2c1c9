"""Google Landmarks Dataset v2, the retrieval task (Weyand et al., CVPR 2020).

    index.csv                    id                 761,757 photos, index/a/b/c/abc….jpg
    retrieval_solution_v2.1.csv  id, images, Usage  117,577 queries, test/a/b/c/abc….jpg

`images` are the ids that match a query, with spaces between. Queries of Usage Public become split val, those of Private
test, as papers report the two apart; Ignored ones (116,448, which show no landmark) are left out.
"""

from dim import files, tables
from dim.data.importers.benchmark import Benchmark, Photo
from dim.errors import UserError, quoted

_SPLIT_OF_USAGE = {"Public": "val", "Private": "test", "Ignored": None}


def gldv2(source: str) -> Benchmark:
    """The set in `source`. Raises UserError where a table is missing or malformed, or names an unknown photo."""
    rows = [Photo(image, _path("index", image), role="database") for (image,) in _rows(source, "index.csv", "id")]
    index = {photo.image_id for photo in rows}
    grades = []
    name = _solution(source)
    for number, (query, images, usage) in enumerate(_rows(source, name, "id", "images", "Usage"), start=2):
        if usage not in _SPLIT_OF_USAGE:
            raise UserError(
                f"{source}/{name}, line {number}: Usage is {quoted(usage)}, not {', '.join(_SPLIT_OF_USAGE)}"
            )
        if _SPLIT_OF_USAGE[usage] is None:
            continue
        rows.append(Photo(query, _path("test", query), split=_SPLIT_OF_USAGE[usage], role="query"))
        for image in dict.fromkeys(images.split()):
            if image not in index:
                raise UserError(f"{source}/{name}, line {number}: image {quoted(image)} is not in index.csv")
            grades.append((query, image, "good"))
    return Benchmark(rows, grades)


def _solution(source: str) -> str:
    found = [name for name in files.names(source) if name.startswith("retrieval_solution") and name.endswith(".csv")]
    if len(found) != 1:
        raise UserError(f"{source!r} must hold one retrieval_solution*.csv, not {', '.join(found) or 'none'}")
    return found[0]


def _rows(source: str, name: str, *columns: str) -> list[tuple[str, ...]]:
    uri = files.join(source, name)
    table = tables.read(uri)
    tables.require_columns(table, columns, uri)
    return list(zip(*(table[column].fill_null("").to_pylist() for column in columns), strict=True))


def _path(folder: str, image: str) -> str:
    return "/".join([folder, *image[:3], f"{image}.jpg"])
