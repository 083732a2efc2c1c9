r"""Group photos that show the same thing, and find copies, without labels.

    python jobs/group.py --manifest pile.csv --descriptors runs/pile --out runs/groups
    ray job submit --working-dir . -- python jobs/group.py --manifest s3://bucket/photos.parquet \
        --descriptors s3://bucket/descriptors --out s3://bucket/groups

Photos are connected with their nearest neighbours, and connected photos are split by average linkage. The threshold is
the one whose groups are most distinct; --threshold overrides it, and curve.csv shows what others give. Output:

    groups.parquet  two levels, object and copy: the group of each photo, named after its first photo, and its
                    similarity to the group's medoid
    manifest.csv    the photos, with their groups as labels, for split.py and train.py (manifest.parquet for Parquet)
    duplicates.csv  what to keep and what to delete of each group of copies; nothing is deleted
    report.html     the groups; mark photos there that don't belong, and save the marks for --corrections

Run the same command again after photos were added: only new photos are compared with all. A photo that is alone has a
label of its own, so training takes it as a negative only; --max-similarity THRESHOLD of train.py leaves out negatives
that may show the same thing.
"""

from typing import Any, NoReturn

from dim.app import cli
from dim.group.config import GroupConfig


def run(config: GroupConfig) -> dict[str, Any]:
    from dim.group.job import group

    return group(config)


def main() -> NoReturn:
    cli.main(run, GroupConfig, __doc__)
