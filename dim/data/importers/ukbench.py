"""UKBench (Nistér and Stewénius, CVPR 2006): 10,200 photos ukbenchNNNNN.jpg, in any sub-folder.

Four after four show one object, and each is a query. An object with fewer gets rows for all four all the same, so that
the others are found missing.
"""

from dim.data.importers.benchmark import Benchmark, Photo, by_stem, listed


def ukbench(source: str) -> Benchmark:
    """The set in `source`. Raises UserError where it holds no such photo."""
    found = by_stem(source, listed(source), r"ukbench\d{5}")
    objects = sorted({int(name.removeprefix("ukbench")) // 4 for name in found})
    names = {f"ukbench{4 * number + view:05d}": f"{number:04d}" for number in objects for view in range(4)}
    rows = [Photo(name, found.get(name, f"full/{name}.jpg"), label, "test") for name, label in names.items()]
    return Benchmark(rows, published=10200)
