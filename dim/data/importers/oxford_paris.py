"""Oxford5k and Paris6k (Philbin et al., CVPR 2007 and 2008): photos, and text files of the Visual Geometry Group.

    *.jpg                        in any sub-folder
    QUERY_query.txt              oxc1_all_souls_000013 136.5 34.1 648.5 955.7      photo and box (Paris6k without oxc1_)
    QUERY_good.txt, _ok, _junk   one photo's name a line

Each of the 55 queries is a row of its own (all_souls_1): a box cropped from a photo that also stands in the database.
Paris6k has 6,412 files, 20 of which hold no photo; the field counts the other 6,392.
"""

from functools import partial

from dim.data.decode import Box
from dim.data.importers.benchmark import Benchmark, Photo, by_stem, lines, listed
from dim.errors import UserError, quoted
from dim.storage import at_once

_QUERY = "_query.txt"
# An image in two lists has the first of these grades: the official compute_ap looks for junk first.
_GRADES = ("junk", "good", "ok")


def read(source: str, published: int) -> Benchmark:
    """The set in `source`. Raises UserError where there are no queries, or a text file is missing or malformed."""
    names = listed(source)
    queries = [name for name in names if name.endswith(_QUERY)]
    if not queries:
        raise UserError(f"{source!r} holds no *{_QUERY}; unpack the set's ground truth files there")
    found = by_stem(source, names)
    boxes = dict(zip(queries, at_once(partial(_box, source), queries), strict=True))
    graded: dict[tuple[str, str], str] = {}
    lists = [(name, grade) for name in queries for grade in _GRADES]
    for (name, grade), images in zip(lists, at_once(partial(_listed_in, source), lists), strict=True):
        for image in images:
            graded.setdefault((_query_id(name), image), grade)
    known = dict.fromkeys([*sorted(found), *(image for image, _ in boxes.values()), *(image for _, image in graded)])
    path = {image: found.get(image, f"{image}.jpg") for image in known}
    rows = [Photo(_query_id(name), path[image], role="query", box=box) for name, (image, box) in boxes.items()]
    rows += [Photo(image, path[image], role="database") for image in known]
    return Benchmark(rows, [(query, image, grade) for (query, image), grade in graded.items()], published)


def _query_id(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(_QUERY)


def _listed_in(source: str, query_and_grade: tuple[str, str]) -> list[str]:
    query, grade = query_and_grade
    return [image for _, (image,) in lines(source, f"{query.removesuffix(_QUERY)}_{grade}.txt", 1)]


def _box(source: str, name: str) -> tuple[str, Box]:
    """The photo and the box that a query file names."""
    found = list(lines(source, name, 5))
    if len(found) != 1:
        raise UserError(f"{source}/{name}: expected one line, a photo and a box, got {len(found)}")
    where, (image, *numbers) = found[0]
    try:
        x1, y1, x2, y2 = map(float, numbers)
    except ValueError as error:
        raise UserError(f"{where}: a box is four numbers, not {quoted(' '.join(numbers))}") from error
    return image.removeprefix("oxc1_"), (x1, y1, x2, y2)


oxford5k = partial(read, published=5063)
paris6k = partial(read, published=6412)
