"""Split labelled photos into train, val and test, and write the manifest that all other jobs read.

    python jobs/split.py dim/assets/demo --out runs/demo/manifest.parquet
    ray job submit --working-dir . -- python jobs/split.py s3://bucket/photos --out s3://bucket/manifest.parquet

By default, labels are split: val and test hold objects that are not in train, which measures how well the network finds
objects that it has never seen. To split the photos of each label instead:

    python jobs/split.py photos.csv --out manifest.csv --val-per-label 2 --test-per-label 2

A photo's label is the path of its folder below IMAGES. If all top folders are named train, val or test (or validation,
valid), they are the splits: the label is the path below them, and the flags for splitting don't apply.

The job decodes every photo once. <manifest>.unreadable.csv lists what was skipped, with the reason: photos that cannot
be decoded, broken links, unreadable folders and so on. Hidden files are only counted.
"""

from typing import Any, NoReturn

from dim.app import cli
from dim.data.config import SplitConfig


def run(config: SplitConfig) -> dict[str, Any]:
    from dim.data.split import split

    return split(config)


def main() -> NoReturn:
    cli.main(run, SplitConfig, __doc__)
