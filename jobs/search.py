#!/usr/bin/env -S python3 -X job
r"""Find the photos of an index that are nearest to each query.

    python jobs/search.py --index runs/index --model vgg16-gem --queries photo.jpg --out runs/search
    ray job submit --working-dir . -- python jobs/search.py --index s3://bucket/index --model s3://bucket/model \
        --queries s3://bucket/queries.csv --out s3://bucket/search --top 100

Queries are a photo, a folder of photos, a manifest or a folder of descriptors; --index may also be a folder of
descriptors, which is searched exactly, streamed from disk. What is not given of --image-size, --resize, --scales and
--precision is as it was for the index. The output is ranked.parquet: query_id, rank (from 1), image_id, score (cosine,
or what k-reciprocal or diffusion put in its place). report.html shows the photos found, map.html where the queries lie
among all: open them in a browser. A query that can't be read is named in the result; others are answered.
"""

from typing import Any

from dim.app.cli import main
from dim.search.config import SearchConfig


def run(config: SearchConfig) -> dict[str, Any]:
    from dim.search.job import search

    return search(config)


if __name__ == "__main__":
    main(run, SearchConfig, __doc__)
