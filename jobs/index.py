#!/usr/bin/env -S python3 -X job
r"""Build an FAISS index of descriptors.

    python jobs/index.py --descriptors runs/descriptors --out runs/index
    ray job submit --working-dir . -- python jobs/index.py --descriptors s3://bucket/descriptors \
        --out s3://bucket/index --factory IVF4096,PQ64

The output is knn.index, by inner product, which FAISS reads, and ids.parquet with the image_id of each of its rows.
Rows are added shard by shard. Flat is written straight to disk and searched exactly; of other indexes only what they
keep of a row (64 bytes with PQ64, and 8 for its place in an IVF) is in memory. How much that is, is said before.
"""

from typing import Any

from dim.app.cli import main
from dim.search.config import IndexConfig


def run(config: IndexConfig) -> dict[str, Any]:
    from dim.search.build_index import build

    return build(config)


if __name__ == "__main__":
    main(run, IndexConfig, __doc__)
