r"""Find the photos of an index that are nearest to each query.

    python jobs/search.py --index runs/index --model vgg16-gem --queries photo.jpg --out runs/search
    ray job submit --working-dir . -- python jobs/search.py --index s3://bucket/index --model s3://bucket/model \
        --queries s3://bucket/queries.csv --out s3://bucket/search --top 100

The queries are a photo, a folder of photos, a manifest or a folder of descriptors, of which there may be millions.
--index may also be a folder of descriptors; the job searches it exactly and streams it from disk. --manifest, --label
and --in-split choose the photos that are searched. --image-size, --resize, --scales and --precision default to the
index's values. The output is ranked.parquet, with query_id, rank (from 1), image_id and score (the cosine, or the score
of k-reciprocal or diffusion). For the browser, report.html shows the photos found, and map.html places the queries
among all photos. The result names each query that can't be read; the job answers the others.
"""

from typing import Any, NoReturn

from dim.app import cli
from dim.search.config import SearchConfig


def run(config: SearchConfig) -> dict[str, Any]:
    from dim.search.job import search

    return search(config)


def main() -> NoReturn:
    cli.main(run, SearchConfig, __doc__)
