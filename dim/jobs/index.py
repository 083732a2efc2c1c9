r"""Build a FAISS index of descriptors, or bring an index up to date.

    python jobs/index.py --descriptors runs/descriptors --out runs/index
    ray job submit --working-dir . -- python jobs/index.py --descriptors s3://bucket/descriptors \
        --out s3://bucket/index --factory IVF4096,PQ64

The output is knn.index, an inner-product index that FAISS reads, and ids.parquet, with the image_id of each of its
rows. The job writes a Flat index, which is exact, straight to disk. Tasks, on all nodes of a cluster, fill any other
index, which is merged in memory. The job first logs the memory needed: 64 bytes per row for PQ64, for example, and 8
more for an IVF. An index that doesn't fit into --memory gets several parts, part-00000 and so on, which search.py
searches in parallel. After a kill, the same command goes on. If the descriptors changed, it adds the new rows and
removes those that are gone. The result says how such an index differs from one that is built anew.
"""

from typing import Any, NoReturn

from dim.app import cli
from dim.search.config import IndexConfig


def run(config: IndexConfig) -> dict[str, Any]:
    from dim.search.build_index import build

    return build(config)


def main() -> NoReturn:
    cli.main(run, IndexConfig, __doc__)
