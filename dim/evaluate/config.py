"""The settings of an evaluation."""

from dataclasses import dataclass
from typing import Literal

from dim.app.config import option
from dim.errors import UserError
from dim.extract.config import Extraction, Split
from dim.search.config import AfterSearch

ProtocolName = Literal["labels", "holidays", "ukbench", "oxford", "revisited", "gldv2"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(AfterSearch, Extraction):
    """What `jobs/evaluate.py` does; each field is a flag."""

    manifest: str = option(help="Parquet or CSV of the photos", metavar="FILE", group="input and output")
    out: str = option(help="folder for metrics.json and per_query.parquet", metavar="DIR", group="input and output")
    descriptors: tuple[str, ...] = option(
        (), help="folder that extract.py made; a second one is compared", metavar="DIR", group="input and output"
    )
    model: tuple[str, ...] = option(
        (), help="extract with this model first; a second one is compared", metavar="X", group="input and output"
    )
    report: bool = option(
        True, help="write report.html and map.html, for which photos are read", group="input and output"
    )
    whitening: str | None = option(
        None, help="whitening file to apply to all descriptors", metavar="FILE", group="input and output"
    )
    protocol: ProtocolName = option("labels", help="what counts as found", group="protocol")
    ground_truth: str | None = option(
        None, help="query_id, image_id, grade; for oxford, revisited, gldv2", metavar="FILE", group="protocol"
    )
    split: Split | None = option(None, help="queries and database; all rows if not given", group="protocol")
    query_split: Split | None = option(None, help="split of the queries", group="protocol")
    database_split: Split | None = option(None, help="split of the database", group="protocol")
    distractors: str | None = option(
        None, help="manifest of photos that match no query, added to the database", metavar="FILE", group="protocol"
    )
    distractor_descriptors: tuple[str, ...] = option(
        (), help="their descriptors; one for each --descriptors", metavar="DIR", group="protocol"
    )
    baseline: str | None = option(
        None, help="metrics.json of an earlier evaluation to hold against", metavar="FILE", group="gate"
    )
    max_drop: float = option(
        0.0,
        help="exit with status 3 where mAP is lower than the baseline's by more, on the queries of both",
        group="gate",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.max_drop < 1:
            raise UserError(f"--max-drop must be at least 0 and below 1, not {self.max_drop}")
        if self.max_drop and self.baseline is None:
            raise UserError("--max-drop needs --baseline metrics.json")
