r"""Fit a whitening: on descriptors, or as part of a model.

    python jobs/whiten.py --manifest photos.csv --descriptors runs/descriptors --out runs/whitening.npz --dimension 256
    python jobs/whiten.py --manifest photos.csv --model vgg16-gem --kind learned --out runs/whitened-gem
    python jobs/whiten.py --manifest photos.csv --model vgg16-rmac --regions --out runs/whitened-rmac
    ray job submit --working-dir . -- python jobs/whiten.py --manifest s3://bucket/photos.parquet \
        --descriptors s3://bucket/descriptors --out s3://bucket/whitening.npz

Whitening decorrelates the dimensions of the descriptors and scales them, so that a few strong directions don't dominate
the cosine. It is the cheapest gain in accuracy. The whitening is a PCA, or is learned from pairs of images with the
same label. Learn it on photos that you don't evaluate; the default is split train. With --descriptors, the output is a
whitening file, which records its training photos and the descriptors that it fits; extract.py, index.py, search.py,
evaluate.py and audit.py take it as --whitening. With --model, the output is a model folder with the whitening as its
PCA layer or, with --regions, as the whitening of the regions that R-MAC sums.
"""

from typing import Any, NoReturn

from dim.app import cli
from dim.whiten.config import WhitenConfig


def run(config: WhitenConfig) -> dict[str, Any]:
    from dim.whiten.job import whiten

    return whiten(config)


def main() -> NoReturn:
    cli.main(run, WhitenConfig, __doc__)
