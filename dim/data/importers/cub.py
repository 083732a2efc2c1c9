"""Caltech-UCSD Birds 200-2011 (Wah et al., 2011).

    images.txt               image_id path      the path is in images/
    image_class_labels.txt   image_id class_id
    classes.txt              class_id name

Retrieval trains on the first 100 classes and tests on the others; the set's own train_test_split.txt is for
classification.
"""

import re

from dim.data.importers.benchmark import Benchmark, Photo, lines
from dim.errors import UserError, quoted

_TRAINING_CLASSES = 100


def cub(source: str) -> Benchmark:
    """The set in `source`. Raises UserError where a list is missing or malformed, or names an unknown number."""
    class_of = {image: number for _, (image, number) in lines(source, "image_class_labels.txt", columns=2)}
    name_of = {number: name for _, (number, name) in lines(source, "classes.txt", columns=2)}
    rows = []
    for where, (image, path) in lines(source, "images.txt", columns=2):
        number = class_of.get(image, "")
        if number not in name_of or not re.fullmatch(r"\d{1,9}", number):
            raise UserError(
                f"{where}: image {quoted(image)} has the class {quoted(number)}, which classes.txt does not number"
            )
        split = "train" if int(number) <= _TRAINING_CLASSES else "test"
        rows.append(Photo(path.rpartition(".")[0], f"images/{path}", name_of[number], split))
    return Benchmark(rows)
