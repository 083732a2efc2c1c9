r"""Find likely label errors, and duplicates under two labels or in two splits.

    python jobs/audit.py --manifest photos.csv --descriptors runs/descriptors --out runs/audit
    ray job submit --working-dir . -- python jobs/audit.py --manifest s3://bucket/photos.parquet \
        --descriptors s3://bucket/descriptors --out s3://bucket/audit

The output is suspects.parquet, suspects.csv and report.html, which shows the photos. There are three kinds of suspects,
each listed with the highest score first:

    label      the photo fits another label better than its own; the score is the difference
    duplicate  two photos are nearly the same; the score is their cosine
    far        the photo is less similar to its label than two random photos to each other; the score is the difference

An exact audit compares all photos with each other and with all labels. For more than about 100,000 photos, let an index
propose the neighbours (--candidates PCA128,HNSW32_SQ8): ten times the photos then take little more than ten times the
work. A wrong label is missed if none of the photo's ten proposed neighbours has the right one.

The audit changes nothing: look at the suspects and correct the manifest. A corrected label needs no new descriptors. To
keep uncorrected suspects out of the triplets, give --max-similarity to train.py and mine.py.
"""

from typing import Any, NoReturn

from dim.app import cli
from dim.audit.config import AuditConfig


def run(config: AuditConfig) -> dict[str, Any]:
    from dim.audit.job import audit

    return audit(config)


def main() -> NoReturn:
    cli.main(run, AuditConfig, __doc__)
