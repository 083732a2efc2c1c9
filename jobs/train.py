#!/usr/bin/env -S python3 -X job
r"""Fine-tune the network on labelled photos, so that it finds your objects better.

    python jobs/train.py
    python jobs/train.py --manifest photos.csv --out runs/mine --epochs 5
    ray job submit --working-dir . -- python jobs/train.py --manifest s3://bucket/photos.parquet \
        --out s3://bucket/run --workers 4

Without --manifest it trains on the demo photos that are shipped with dim. Each epoch the training photos are
embedded anew, the hardest triplets are mined across the cluster, and the network is fitted to them; the epoch that is
best on split val is kept, which may be none: then it is the network with its fitted PCA, epoch 0. The run's folder gets
model/, history.csv, tensorboard/, checkpoints/, unreadable.csv where photos can't be read, and report.html, which shows
the hardest triplets of each epoch and what is found before and after: open it in a browser. Run the same command again
to resume. Once an epoch is done, photos, labels and splits must be as they were: with other ones, give another --out,
and --model RUN/model to train on.
"""

from typing import Any

from dim.app.cli import main
from dim.train.config import TrainConfig


def run(config: TrainConfig) -> dict[str, Any]:
    from dim.train.job import train

    return train(config)


if __name__ == "__main__":
    main(run, TrainConfig, __doc__)
