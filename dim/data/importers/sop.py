"""Stanford Online Products (Song et al., CVPR 2016): photos of products, and two lists with different classes.

Ebay_train.txt, Ebay_test.txt   image_id class_id super_class_id path      below a header of these words
"""

from dim.data.importers.benchmark import Benchmark, Photo, lines


def sop(source: str) -> Benchmark:
    """The set in `source`. Raises UserError where a list is missing or malformed."""
    rows = []
    for split in ("train", "test"):
        for _, (_, label, _, path) in lines(source, f"Ebay_{split}.txt", columns=4, header=True):
            rows.append(Photo(path.rpartition(".")[0], path, label, split))
    return Benchmark(rows)
