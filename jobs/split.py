#!/usr/bin/env -S python3 -X job
"""Split labelled photos into train, val and test: writes the manifest that all other jobs read.

    python jobs/split.py dim/assets/demo --out runs/demo/manifest.parquet
    ray job submit --working-dir . -- python jobs/split.py s3://bucket/photos --out s3://bucket/manifest.parquet

By label (the default), val and test hold objects that are not in train: the way to learn how well objects never seen
are found. Per label, each label has photos in all splits:

    python jobs/split.py photos.csv --out manifest.csv --val-per-label 2 --test-per-label 2

A photo's label is the folder that holds it, as its path below IMAGES. Where all top folders are named train, val or
test (validation, valid), they are the splits and no part of labels, and what is said above about shares does not apply.

Every photo is decoded once. Whatever was seen and not taken (photos that cannot be decoded, broken links, folders that
cannot be read, …) is listed with the reason in <manifest>.unreadable.csv; hidden files are only counted.
"""

from typing import Any

from dim.app.cli import main
from dim.data.config import SplitConfig


def run(config: SplitConfig) -> dict[str, Any]:
    from dim.data.split import split

    return split(config)


if __name__ == "__main__":
    main(run, SplitConfig, __doc__)
