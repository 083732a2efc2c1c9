r"""Mine hard triplets from descriptors and labels, hardest first.

    python jobs/mine.py --manifest photos.csv --descriptors runs/descriptors --out runs/triplets --top 1600
    ray job submit --working-dir . -- python jobs/mine.py --manifest s3://bucket/photos.csv \
        --descriptors s3://bucket/descriptors --out s3://bucket/triplets --strategy distinct

The search is exact and gives the same triplets on any cluster, unless --candidates is given. The output is
triplets.parquet, with rank, anchor_id, positive_id, negative_id, distance_ap and distance_an (squared L2), and loss =
max(0, margin + distance_ap − distance_an).
"""

from typing import Any, NoReturn

from dim.app import cli
from dim.mine.config import MineConfig


def run(config: MineConfig) -> dict[str, Any]:
    from dim.mine.job import mine_folder

    return mine_folder(config)


def main() -> NoReturn:
    cli.main(run, MineConfig, __doc__)
