#!/usr/bin/env -S python3 -X job
r"""Measure how well descriptors find the photos that show the same object.

    python jobs/evaluate.py --manifest dim/assets/demo/manifest.csv --split test --model vgg16-gem --out runs/evaluation
    ray job submit --working-dir . -- python jobs/evaluate.py --manifest s3://bucket/photos.parquet --split test \
        --descriptors s3://bucket/descriptors --out s3://bucket/evaluation

With --model the descriptors are made first; given twice, two models (or two folders of descriptors) are compared.
Protocols: labels (a query's positives share its label), holidays and ukbench go by labels; oxford, revisited and gldv2
by --ground-truth. The output is metrics.json, per_query.parquet and, for labels, classification_report.json; of two,
compared.parquet has the difference for each query. report.html shows all that, with photos, and map.html the photos by
likeness: open them in a browser. With --baseline, a fall in mAP by more than --max-drop ends in exit status 3.
"""

from typing import Any

from dim.app.cli import main
from dim.evaluate.config import EvaluateConfig


def run(config: EvaluateConfig) -> dict[str, Any]:
    from dim.evaluate.job import evaluate

    return evaluate(config)


if __name__ == "__main__":
    main(run, EvaluateConfig, __doc__)
