"""INRIA Holidays (Jégou et al., ECCV 2008): 1,491 photos NNNNMM.jpg of 500 groups NNNN, in any sub-folder.

NNNN00 is the group's query. A group without it gets a row for it all the same, so that it is found missing.
"""

from dim.data.importers.benchmark import Benchmark, Photo, by_stem, listed


def holidays(source: str) -> Benchmark:
    """The set in `source`. Raises UserError where it holds no such photo."""
    found = by_stem(source, listed(source), r"\d{6}")
    names = sorted({*found, *(f"{name[:4]}00" for name in found)})
    return Benchmark([_photo(name, found.get(name, f"jpg/{name}.jpg")) for name in names], published=1491)


def _photo(name: str, path: str) -> Photo:
    return Photo(name, path, label=name[:4], split="test", role=None if name.endswith("00") else "database")
