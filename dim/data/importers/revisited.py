"""ROxford5k and RParis6k (Radenović et al., CVPR 2018): the photos of Oxford5k and Paris6k, and one pickle.

    *.jpg               in any sub-folder
    gnd_roxford5k.pkl   imlist: names of the database; qimlist: names of the queries;
                        gnd: for each query bbx (x1, y1, x2, y2) and easy, hard, junk (positions in imlist)

The 70 queries are cropped to their boxes and do not stand in the database.
"""

from functools import partial
from typing import Any

from dim import files
from dim.data.importers.benchmark import Benchmark, Photo, by_stem, listed
from dim.data.unpickle import unpickle
from dim.errors import UserError, quoted

_GRADES = ("easy", "hard", "junk")
# A pickle may hold one list in a million places. The real sets have some 50,000 grades.
_MAX_GRADES = 1_000_000


def read(source: str, pickle: str) -> Benchmark:
    """The set in `source`. Raises UserError where the pickle is missing, or is not as described above."""
    found = by_stem(source, listed(source))
    uri = files.join(source, pickle)
    try:
        images, queries, gnd = _checked(unpickle(uri))
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{uri!r} is not the ground truth of {pickle}: {quoted(error)}") from error
    path = {name: found.get(name, f"jpg/{name}.jpg") for name in images + queries}
    rows = [Photo(name, path[name], role="query", box=box) for name, (box, _) in zip(queries, gnd, strict=True)]
    rows += [Photo(name, path[name], role="database") for name in images]
    grades = [
        (query, images[position], grade)
        for query, (_, graded) in zip(queries, gnd, strict=True)
        for grade, positions in graded.items()
        for position in positions
    ]
    return Benchmark(rows, grades)


def _checked(document: Any) -> tuple[list[str], list[str], list[tuple[Any, dict[str, list[int]]]]]:
    """imlist, qimlist, and for each query its box and grade → positions; raises where the types do not fit."""
    images, queries = ([_name(name) for name in document[key]] for key in ("imlist", "qimlist"))
    if len({*images, *queries}) < len(images) + len(queries):
        raise ValueError("a name stands twice")
    if len(document["gnd"]) != len(queries):
        raise ValueError(f"{len(queries)} queries but {len(document['gnd'])} entries")
    if sum(len(entry[grade]) for entry in document["gnd"] for grade in _GRADES) > _MAX_GRADES:
        raise ValueError(f"more than {_MAX_GRADES:,} grades")
    gnd = []
    for entry in document["gnd"]:
        x1, y1, x2, y2 = map(float, entry["bbx"])
        graded = {grade: [int(position) for position in entry[grade]] for grade in _GRADES}
        if any(not 0 <= position < len(images) for positions in graded.values() for position in positions):
            raise IndexError(f"a position is not in the imlist of {len(images)}")
        gnd.append(((x1, y1, x2, y2), graded))
    return images, queries, gnd


def _name(value: Any) -> str:
    """`value`, where a photo's file may be called so: what a pickle nests must not be unfolded into a name."""
    if not isinstance(value, str) or len(value.encode()) > 255:
        raise TypeError(f"no name of a photo: {quoted(value)}")
    return value


roxford5k = partial(read, pickle="gnd_roxford5k.pkl")
rparis6k = partial(read, pickle="gnd_rparis6k.pkl")
