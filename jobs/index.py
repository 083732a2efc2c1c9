#!/usr/bin/env -S python3 -X job
r"""Build a FAISS index of descriptors.

    python jobs/index.py --descriptors runs/descriptors --out runs/index
    ray job submit --working-dir . -- python jobs/index.py --descriptors s3://bucket/descriptors \
        --out s3://bucket/index --factory IVF4096,PQ64

The output is knn.index, an inner-product index that FAISS reads, and ids.parquet, with the image_id of each of its
rows. The job writes a Flat index, which is exact, straight to disk. It builds any other index in memory, in compressed
form, shard by shard, and first logs the memory needed: 64 bytes per row for PQ64, for example, and 8 more for an IVF.
"""

from typing import Any

from dim.app.cli import main
from dim.search.config import IndexConfig


def run(config: IndexConfig) -> dict[str, Any]:
    from dim.search.build_index import build

    return build(config)


if __name__ == "__main__":
    main(run, IndexConfig, __doc__)
