"""Importers of Oxford5k, Paris6k, ROxford5k and RParis6k, and an unpickler that runs no code.

Oxford5k and Paris6k (Philbin et al., CVPR 2007 and 2008) consist of photos and text files:

    *.jpg                        in any sub-folder
    QUERY_query.txt              oxc1_all_souls_000013 136.5 34.1 648.5 955.7      photo and box (Paris6k: no oxc1_)
    QUERY_good.txt, _ok, _junk   one photo's name per line

Each of the 55 queries, such as all_souls_1, is a row of its own. A query is a box in a photo, and the photo is also in
the database. Paris6k has 6,412 files. 20 of the files are not photos, so papers count 6,392.

ROxford5k and RParis6k (Radenović et al., CVPR 2018) consist of the same photos and one pickle:

    *.jpg               in any sub-folder
    gnd_roxford5k.pkl   imlist: names of the database; qimlist: names of the queries;
                        gnd: for each query bbx (x1, y1, x2, y2) and easy, hard, junk (positions in imlist)

The 70 queries are cropped to their boxes and are not in the database.

A pickle is a program. Instructions that fetch a class or a function by name are dangerous. `unpickle` refuses them, so
that the program can call nothing. (Python itself refuses references to external objects.)
"""

import io
import pickle
import pickletools
import textwrap
from functools import partial
from typing import Any

from dim.data.benchmarks import Benchmark, BenchmarkPhoto, file_names, photos_by_stem, read_bytes, words_of_lines
from dim.data.decode import Box
from dim.errors import UserError, quoted
from dim.io import files
from dim.io.storage import parallel_map

_QUERY = "_query.txt"
# An image in two lists gets the first of these grades, because the official compute_ap looks for junk first.
_GRADES = ("junk", "good", "ok")


def import_original(source: str, published: int) -> Benchmark:
    """Imports Oxford5k or Paris6k. Raises UserError if there are no queries, or a text file is missing or malformed."""
    names = file_names(source)
    if not (queries := [name for name in names if name.endswith(_QUERY)]):
        raise UserError(f"{source!r} holds no *{_QUERY}; unpack the benchmark's ground truth files there")
    found = photos_by_stem(source, names)
    boxes = dict(zip(queries, parallel_map(partial(_box, source), queries), strict=True))
    graded: dict[tuple[str, str], str] = {}
    lists = [(name, grade) for name in queries for grade in _GRADES]
    for (name, grade), images in zip(lists, parallel_map(partial(_graded_names, source), lists), strict=True):
        for image in images:
            graded.setdefault((_query_id(name), image), grade)
    known = dict.fromkeys([*sorted(found), *(image for image, _ in boxes.values()), *(image for _, image in graded)])
    path = {image: found.get(image, f"{image}.jpg") for image in known}
    rows = [BenchmarkPhoto(_query_id(name), path[image], role="query", box=box) for name, (image, box) in boxes.items()]
    rows += [BenchmarkPhoto(image, path[image], role="database") for image in known]
    return Benchmark(rows, [(query, image, grade) for (query, image), grade in graded.items()], published)


def _query_id(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(_QUERY)


def _graded_names(source: str, query_and_grade: tuple[str, str]) -> list[str]:
    query, grade = query_and_grade
    return [image for _, (image,) in words_of_lines(source, f"{query.removesuffix(_QUERY)}_{grade}.txt", 1)]


def _box(source: str, name: str) -> tuple[str, Box]:
    """Reads the photo and the box from a query file."""
    found = list(words_of_lines(source, name, 5))
    if len(found) != 1:
        raise UserError(f"{source}/{name}: expected one line with a photo and a box, got {len(found)} lines")
    where, (image, *numbers) = found[0]
    try:
        x1, y1, x2, y2 = map(float, numbers)
    except ValueError as error:
        raise UserError(f"{where}: a box is four numbers, not {quoted(' '.join(numbers))}") from error
    return image.removeprefix("oxc1_"), (x1, y1, x2, y2)


oxford5k = partial(import_original, published=5063)
paris6k = partial(import_original, published=6412)


_REVISITED_GRADES = ("easy", "hard", "junk")
# The real benchmarks have some 50,000 grades. Without a limit, a small pickle could refer to one list too often.
_MAX_GRADES = 1_000_000


def import_revisited(source: str, pickle: str) -> Benchmark:
    """Imports ROxford5k or RParis6k. Raises UserError if the pickle is missing, unsafe or malformed."""
    found = photos_by_stem(source, file_names(source))
    uri = files.join(source, pickle)
    try:
        images, queries, gnd = _checked(unpickle(uri))
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{uri!r} is not the ground truth of {pickle}: {quoted(error)}") from error
    path = {name: found.get(name, f"jpg/{name}.jpg") for name in images + queries}
    rows = [
        BenchmarkPhoto(name, path[name], role="query", box=box) for name, (box, _) in zip(queries, gnd, strict=True)
    ]
    rows += [BenchmarkPhoto(name, path[name], role="database") for name in images]
    grades = [
        (query, images[position], grade)
        for query, (_, graded) in zip(queries, gnd, strict=True)
        for grade, positions in graded.items()
        for position in positions
    ]
    return Benchmark(rows, grades)


def _checked(document: Any) -> tuple[list[str], list[str], list[tuple[Any, dict[str, list[int]]]]]:
    """Returns imlist, qimlist, and, for each query, its box and a map from grade to positions in imlist.

    Raises LookupError, TypeError, ValueError or OverflowError if the document is malformed.
    """
    images, queries = ([_name(name) for name in document[key]] for key in ("imlist", "qimlist"))
    if len({*images, *queries}) < len(images) + len(queries):
        raise ValueError("a name occurs twice")
    if len(document["gnd"]) != len(queries):
        raise ValueError(f"{len(queries)} queries but {len(document['gnd'])} entries")
    if sum(len(entry[grade]) for entry in document["gnd"] for grade in _REVISITED_GRADES) > _MAX_GRADES:
        raise ValueError(f"more than {_MAX_GRADES:,} grades")
    gnd = []
    for entry in document["gnd"]:
        x1, y1, x2, y2 = map(float, entry["bbx"])
        graded = {grade: [int(position) for position in entry[grade]] for grade in _REVISITED_GRADES}
        if any(not 0 <= position < len(images) for positions in graded.values() for position in positions):
            raise IndexError(f"a position is not in the imlist of {len(images)}")
        gnd.append(((x1, y1, x2, y2), graded))
    return images, queries, gnd


def _name(value: Any) -> str:
    """Returns `value` if it can name a file. Raises TypeError if not: `str` of nested lists could fill the memory."""
    if not isinstance(value, str) or len(value.encode()) > 255:
        raise TypeError(f"not a photo's name: {quoted(value)}")
    return value


roxford5k = partial(import_revisited, pickle="gnd_roxford5k.pkl")
rparis6k = partial(import_revisited, pickle="gnd_rparis6k.pkl")


_MAX_BYTES = 16 * 2**20  # the most bytes of a pickle
# Larger integers may all have the same hash. A dict with n such keys takes n² steps. Positions and pixels are smaller.
_MAX_INTEGER = 2**53


class _BuiltInTypesOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only built-in types are allowed")


def unpickle(uri: str) -> Any:
    """Loads the pickle at `uri`. It may hold dicts, lists, sets, text, bytes, numbers, booleans and None.

    Raises UserError if the file is missing, too large or corrupt, if it holds a tuple or an integer of more than 53
    bits, or if it asks for any other type. The message names that type.
    """
    files.require_at_most(uri, _MAX_BYTES, "a pickle")
    content = read_bytes(uri)
    try:
        _check_instructions(content)
        return _BuiltInTypesOnly(io.BytesIO(content)).load()
    except Exception as error:  # a corrupt file raises almost any type
        reason = textwrap.shorten(str(error), 300, placeholder=" …") or type(error).__name__
        raise UserError(f"cannot read the pickle {uri!r}: {reason}") from error


def _check_instructions(content: bytes) -> None:
    """Refuses instructions that would exhaust memory, stack or time, before any object is made."""
    for instruction, argument, _ in pickletools.genops(content):
        if "GLOBAL" in instruction.name or instruction.name == "INST":
            return  # the unpickler stops at this instruction, and its message names the class
        # A tuple that is the key of a dict is hashed. If tuples are nested deeply, hashing overflows the C stack. If
        # each of n tuples holds the previous tuple twice, hashing takes 2ⁿ steps.
        if instruction.name.startswith("TUPLE"):
            raise pickle.UnpicklingError("it has a tuple; write a list")
        if isinstance(argument, int) and abs(argument) >= _MAX_INTEGER:
            raise pickle.UnpicklingError(f"an integer has more than {_MAX_INTEGER.bit_length() - 1} bits")
        # The unpickler makes its memo, an array, as long as the largest index.
        if instruction.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise pickle.UnpicklingError(f"its memo index {argument} is larger than the file")
