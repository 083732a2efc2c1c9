"""Turn a benchmark as distributed into a manifest and, if labels are not enough, a ground truth.

    python jobs/import.py oxford5k datasets/oxford5k --out runs/oxford5k
    ray job submit --working-dir . -- python jobs/import.py roxford5k s3://bucket/roxford5k --out s3://bucket/imported

dim/data/benchmarks.py, dim/data/oxford_paris.py and dim/data/ilias.py describe the layouts. The photos stay in their
place; problems.csv lists missing and corrupt ones. Then evaluate, for example:

    python jobs/evaluate.py --manifest runs/oxford5k/manifest.parquet --model vgg16-gem --protocol oxford \\
        --ground-truth runs/oxford5k/ground_truth.parquet --out runs/oxford5k-gem

Descriptors made elsewhere become a folder like that of extract.py, which all jobs read:

    python jobs/import.py embeddings dinov2.npy --ids dinov2.txt --name dinov2-vitb14 --out runs/dinov2
"""

from typing import Any, NoReturn

from dim.app import cli
from dim.data.config import EMBEDDINGS, ImportConfig


def run(config: ImportConfig) -> dict[str, Any]:
    if config.layout == EMBEDDINGS:
        from dim.extract.import_embeddings import import_embeddings

        return import_embeddings(config)
    from dim.data.import_job import import_benchmark

    return import_benchmark(config)


def main() -> NoReturn:
    cli.main(run, ImportConfig, __doc__)
