r"""Make one descriptor for each photo of a manifest.

    python jobs/extract.py --manifest photos.csv --model vgg16-gem --out runs/descriptors
    ray job submit --working-dir . -- python jobs/extract.py --manifest s3://bucket/photos.parquet \
        --model s3://bucket/model --out s3://bucket/descriptors

CPUs decode the photos; GPUs, if there are any, run the network. The output is a folder of Parquet files with one row
per photo; a photo that could not be read has the status "error" and the reason. Run the same command again to resume,
or after photos were added, changed or removed: it computes only new and changed ones.
"""

from typing import Any, NoReturn

from dim.app import cli
from dim.extract.config import ExtractConfig


def run(config: ExtractConfig) -> dict[str, Any]:
    from dim.extract.job import extract

    return extract(config)


def main() -> NoReturn:
    cli.main(run, ExtractConfig, __doc__)
