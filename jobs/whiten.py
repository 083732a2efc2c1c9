#!/usr/bin/env -S python3 -X job
r"""Fit a whitening: on descriptors, or as part of a model.

    python jobs/whiten.py --manifest photos.csv --descriptors runs/descriptors --out runs/whitening.npz --dimension 256
    python jobs/whiten.py --manifest photos.csv --model vgg16-gem --kind learned --out runs/whitened-gem
    python jobs/whiten.py --manifest photos.csv --model vgg16-rmac --regions --out runs/whitened-rmac
    ray job submit --working-dir . -- python jobs/whiten.py --manifest s3://bucket/photos.parquet \
        --descriptors s3://bucket/descriptors --out s3://bucket/whitening.npz

Whitening gives each direction of the descriptors a fairer share, and is the cheapest gain in accuracy there is. It is
a PCA, or learned from the images that share a label. Learn it on photos that are not evaluated: split train, by
default. A whitening file says what it was learned on and which descriptors it fits; extract.py, evaluate.py and
search.py take it as --whitening. With --model, the result is a model folder with the whitening as its PCA layer, or,
with --regions, of the regions that R-MAC sums.
"""

from typing import Any

from dim.app.cli import main
from dim.whiten.config import WhitenConfig


def run(config: WhitenConfig) -> dict[str, Any]:
    from dim.whiten.job import whiten

    return whiten(config)


if __name__ == "__main__":
    main(run, WhitenConfig, __doc__)
