r"""Fine-tune the network on labelled photos, so that it finds your objects better.

    python jobs/train.py
    python jobs/train.py --manifest photos.csv --out runs/mine --epochs 5
    ray job submit --working-dir . -- python jobs/train.py --manifest s3://bucket/photos.parquet \
        --out s3://bucket/run --workers 4

Without --manifest, the job trains on the demo photos shipped with dim. Each epoch embeds the training photos, mines the
hardest triplets across the cluster, and fits the network to them. The run returns the network with the best mAP on
split val: that of the best epoch, that of epoch 0 (with its fitted PCA, before any training), or the network as it came
(`best_epoch` is then null). The log, the result and the report say in one line, `verdict`, how sure that is.

The run's folder holds model/, history.csv, tensorboard/, checkpoints/, unreadable.csv if photos can't be read, and
report.html; open it in a browser to see the hardest triplets of each epoch and what the network finds before and after.

With R-MAC (--model vgg16-rmac), the whitening of its regions is fitted before the PCA, and trained, too. After the last
epoch, --final-whitening fits the PCA layer again to the trained descriptors, and keeps the result if it is better on
split val.

Run the same command again to resume. After the first epoch, photos, labels and splits must stay the same. To continue
training with other photos, give another --out, and --model RUN/model.
"""

from typing import Any, NoReturn

from dim.app import cli
from dim.train.config import TrainConfig


def run(config: TrainConfig) -> dict[str, Any]:
    from dim.train.job import train

    return train(config)


def main() -> NoReturn:
    cli.main(run, TrainConfig, __doc__)
