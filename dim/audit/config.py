"""The flags of audit.py."""

from dataclasses import dataclass

from dim.app.config import flag_name, option
from dim.app.memory import TaskOptions
from dim.errors import UserError
from dim.extract.config import Split
from dim.search.config import CANDIDATE_PARAMETERS, require_candidates


@dataclass(frozen=True, kw_only=True)
class AuditConfig(TaskOptions):
    """The flags of `jobs/audit.py`. Raises UserError if a value is out of range."""

    manifest: str = option(help="Parquet or CSV of the photos, with labels", metavar="FILE", group="input and output")
    descriptors: str = option(help="folder made by extract.py", metavar="DIR", group="input and output")
    out: str = option(help="folder for the list and report.html", metavar="DIR", group="input and output")
    split: Split | None = option(None, help="only this split (default: all rows)", group="input and output")
    whitening: str | None = option(
        None, help="whitening file to apply; whitened descriptors find more errors", metavar="FILE",
        group="input and output",
    )  # fmt: skip
    least_score: float = option(
        0.3, help="list likely label errors with at least this score; 0.2 finds more, with more false positives",
        group="list",
    )  # fmt: skip
    duplicates: float = option(0.95, help="list pairs of photos with at least this cosine", group="list")
    candidates: str | None = option(
        None,
        help="FAISS index that proposes each photo's 10 nearest neighbours, such as PCA128,HNSW32_SQ8, for more than "
        "about 100,000 photos; then a photo may only belong to the label of one of them, and only they are compared "
        "for duplicates (default: compare all photos and labels)",
        metavar="FACTORY",
        group="list",
    )
    candidate_parameters: str | None = option(None, help=CANDIDATE_PARAMETERS, metavar="TEXT", group="list")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("least_score", "duplicates"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{flag_name(name)} must be above 0 and at most 1, not {getattr(self, name)}")
        require_candidates(self.candidates, self.candidate_parameters)
