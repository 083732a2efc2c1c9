r"""Measure how well descriptors find the photos that show the same object.

    python jobs/evaluate.py --manifest dim/assets/demo/manifest.csv --split test --model vgg16-gem --out runs/evaluation
    ray job submit --working-dir . -- python jobs/evaluate.py --manifest s3://bucket/photos.parquet --split test \
        --descriptors s3://bucket/descriptors --out s3://bucket/evaluation

With --model, the job extracts the descriptors first. Give --model or --descriptors twice to compare two. The protocols
labels (a query's positives share its label), holidays, ukbench and ilias use the manifest's labels; oxford, revisited
and gldv2 use --ground-truth. With --ranked, the job measures the lists of search.py or of another program, and writes
no pages. The output is metrics.json, per_query.parquet and, for labels, classification_report.json; a
comparison adds compared.parquet, with the difference for each query. For the browser, report.html shows all this with
photos, and map.html places similar photos side by side. With --baseline, the job exits with status 3 if mAP falls by
more than --max-drop.
"""

from typing import Any, NoReturn

from dim.app import cli
from dim.evaluate.config import EvaluateConfig


def run(config: EvaluateConfig) -> dict[str, Any]:
    from dim.evaluate.job import evaluate

    return evaluate(config)


def main() -> NoReturn:
    cli.main(run, EvaluateConfig, __doc__)
