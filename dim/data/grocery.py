"""Importer of the Grocery Store Dataset: photos of products on shelves, for retrieval or for classification."""

from collections.abc import Iterator

from dim.data.benchmarks import Benchmark, BenchmarkPhoto, numbered_lines
from dim.errors import UserError, quoted

# The splits by product are dim's own. Those of the 31 products of the shipped demo are the demo's.
VAL = {
    "Arla-Lactose-Medium-Fat-Milk", "Arla-Standard-Milk", "Avocado", "Carrots", "Ginger", "Kiwi", "Orange", "Pink-Lady",
    "Red-Grapefruit", "Tropicana-Golden-Grapefruit", "Tropicana-Mandarin-Morning", "Vine-Tomato",
}  # fmt: skip
TEST = {
    "Alpro-Fresh-Soy-Milk", "Alpro-Shelf-Soy-Milk", "Alpro-Vanilla-Soyghurt", "Arla-Ecological-Medium-Fat-Milk",
    "Arla-Natural-Yoghurt", "Arla-Sour-Cream", "Arla-Sour-Milk", "Asparagus", "Beef-Tomato", "Cabbage", "Cucumber",
    "Galia-Melon", "Garant-Ecological-Medium-Fat-Milk", "Garant-Ecological-Standard-Milk", "God-Morgon-Apple-Juice",
    "God-Morgon-Orange-Red-Grapefruit-Juice", "Granny-Smith", "Honeydew-Melon", "Lemon", "Mango", "Papaya", "Peach",
    "Pomegranate", "Red-Bell-Pepper", "Royal-Gala", "Solid-Potato", "Tropicana-Juice-Smooth", "Yellow-Bell-Pepper",
    "Zucchini",
}  # fmt: skip
LISTS = ("train", "val", "test")


def grocery(source: str) -> Benchmark:
    """Imports the Grocery Store Dataset for retrieval (Klasson et al., WACV 2019).

        train.txt, val.txt, test.txt   path, class number, number of the coarse class

    `source` is the folder `dataset` of its repository. The label is the product: the folder that holds the photo. The
    81 products are divided into splits: 12 are val, 29 are test, and the others are train.
    Raises UserError if a list is missing or malformed.
    """
    return Benchmark([_photo(path, label, _split(label)) for _, path, label in _listed(source)])


def grocery_lists(source: str) -> Benchmark:
    """Imports the Grocery Store Dataset for classification: its own lists, of the same products, are the splits."""
    return Benchmark([_photo(path, label, name) for name, path, label in _listed(source)])


def _split(label: str) -> str:
    return "val" if label in VAL else "test" if label in TEST else "train"


def _photo(path: str, label: str, split: str) -> BenchmarkPhoto:
    return BenchmarkPhoto(path.rpartition(".")[0], path, label, split)


def _listed(source: str) -> Iterator[tuple[str, str, str]]:
    """The list, the path and the label of each photo."""
    for name in LISTS:
        for where, line in numbered_lines(source, f"{name}.txt"):
            path, *numbers = (word.strip() for word in line.rsplit(",", 2))
            if path and (len(numbers) != 2 or path.count("/") < 2):
                raise UserError(f"{where}: expected a path below {name}/ and two class numbers, got {quoted(line)}")
            if path:
                yield name, path, path.split("/")[-2]
