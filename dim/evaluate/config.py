"""The flags of evaluate.py. Nightly evaluations share `ProtocolOptions`, the flags that say what is measured."""

from dataclasses import dataclass
from typing import Literal

from dim.app import memory
from dim.app.config import option
from dim.errors import UserError
from dim.extract.config import Extraction, Split
from dim.search.config import AfterSearch

ProtocolName = Literal["labels", "holidays", "ukbench", "oxford", "revisited", "gldv2", "ilias"]


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions:
    """What an evaluation measures: the protocol, its ground truth, and the splits of queries and database."""

    protocol: ProtocolName = option("labels", help="which photos are a query's positives", group="protocol")
    ground_truth: str | None = option(
        None, help="table of query_id, image_id, grade; for oxford, revisited, gldv2", metavar="FILE", group="protocol"
    )
    split: Split | None = option(None, help="split of queries and database (default: all rows)", group="protocol")
    query_split: Split | None = option(None, help="split of the queries, if the database is another", group="protocol")
    database_split: Split | None = option(
        None, help="split of the database, if the queries are another", group="protocol"
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(AfterSearch, ProtocolOptions, Extraction):
    """The flags of `jobs/evaluate.py`. Raises UserError if a value is out of range."""

    manifest: str = option(help="Parquet or CSV of the photos", metavar="FILE", group="input and output")
    out: str = option(help="folder for metrics.json and per_query.parquet", metavar="DIR", group="input and output")
    descriptors: tuple[str, ...] = option(
        (), help="folder made by extract.py; a second one is compared", metavar="DIR", group="input and output"
    )
    model: tuple[str, ...] = option(
        (), help="extract with this model first; a second one is compared", metavar="X", group="input and output"
    )
    ranked: str | None = option(
        None,
        help="ranked lists to measure instead of descriptors: ranked.parquet of search.py, or query_id, rank, image_id",
        metavar="FILE",
        group="input and output",
    )
    report: bool = option(
        True, help="write report.html and map.html, which reads the photos again", group="input and output"
    )
    whitening: str | None = option(
        None, help="whitening file to apply to all descriptors", metavar="FILE", group="input and output"
    )
    distractors: str | None = option(
        None, help="manifest of photos that match no query, added to the database", metavar="FILE", group="protocol"
    )
    distractor_descriptors: tuple[str, ...] = option(
        (), help="descriptors of the distractors; one folder for each --descriptors", metavar="DIR", group="protocol"
    )
    baseline: str | None = option(
        None, help="metrics.json of an earlier evaluation to compare with", metavar="FILE", group="gate"
    )
    max_drop: float = option(
        0.0,
        help="exit with status 3 if mAP is lower than the baseline's by more than this, on the queries in common",
        group="gate",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory is not None:
            memory.parsed(self.memory)
        if not 0 <= self.max_drop < 1:
            raise UserError(f"--max-drop must be at least 0 and below 1, not {self.max_drop}")
        if self.max_drop and self.baseline is None:
            raise UserError("--max-drop needs --baseline metrics.json")
