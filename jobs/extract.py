#!/usr/bin/env -S python3 -X job
r"""Make one descriptor of each photo of a manifest.

    python jobs/extract.py --manifest photos.csv --model vgg16-gem --out runs/descriptors
    ray job submit --working-dir . -- python jobs/extract.py --manifest s3://bucket/photos.parquet \
        --model s3://bucket/model --out s3://bucket/descriptors

Photos are decoded on CPUs and go through the network on GPUs where there are any. The output is a folder of Parquet
files with one row a photo, also for those that could not be read (status "error", with the reason). Run the same
command again to resume, or after photos were added, changed or removed: only those are computed.
"""

from typing import Any

from dim.app.cli import main
from dim.extract.config import ExtractConfig


def run(config: ExtractConfig) -> dict[str, Any]:
    from dim.extract.job import extract

    return extract(config)


if __name__ == "__main__":
    main(run, ExtractConfig, __doc__)
