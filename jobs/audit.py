#!/usr/bin/env -S python3 -X job
r"""Find likely label errors, and duplicates under two labels or in two splits.

    python jobs/audit.py --manifest photos.csv --descriptors runs/descriptors --out runs/audit
    ray job submit --working-dir . -- python jobs/audit.py --manifest s3://bucket/photos.parquet \
        --descriptors s3://bucket/descriptors --out s3://bucket/audit

The output is suspects.parquet and .csv, and report.html, which shows them. There are three kinds, each with the highest
score first: label (another label claims the photo more than its own does; the score is by how much), duplicate (two
photos all but the same; their cosine) and far (the photo resembles none of its label; by how much less than any two
photos do). It is for you to look and to correct the manifest; descriptors stay as they are. What you leave uncorrected,
train.py and mine.py keep out of the triplets by --max-similarity.
"""

from typing import Any

from dim.app.cli import main
from dim.audit.config import AuditConfig


def run(config: AuditConfig) -> dict[str, Any]:
    from dim.audit.job import audit

    return audit(config)


if __name__ == "__main__":
    main(run, AuditConfig, __doc__)
