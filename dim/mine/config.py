"""The settings of mining: those that training shares (`Mining`), and the flags of mine.py."""

from dataclasses import dataclass
from typing import Literal

from dim.app.config import MOST_SEED, Options, option, require_at_least
from dim.app.memory import TaskOptions
from dim.errors import UserError
from dim.search.config import CANDIDATE_PARAMETERS, require_candidates

StrategyName = Literal["hardest", "distinct", "random"]
_COUNTS = ("top", "positives_per_anchor", "negatives_per_anchor", "candidates_per_pair")
_AT_LEAST = {**dict.fromkeys(_COUNTS, 1), "margin": 0, "max_similarity": -1, "seed": 0}


@dataclass(frozen=True)
class Mining(Options):
    """Which triplets are candidates and which are kept. Raises UserError for a value out of range."""

    strategy: StrategyName = option(
        "hardest",
        help="hardest: the nearest negatives of each anchor; distinct: the same, at most one per label; "
        "random: drawn for each ordered pair of labels",
        group="mining",
    )
    margin: float = option(0.1, help="margin of the triplet loss; triplets with no loss are not mined", group="mining")
    top: int | None = option(None, help="triplets to keep (default: all with a loss above 0)", group="mining")
    positives_per_anchor: int = option(4, help="positives of each anchor, the farthest", group="mining")
    negatives_per_anchor: int = option(5, help="negatives of each anchor, the nearest", group="mining")
    candidates_per_pair: int = option(
        70, help="triplets that --strategy random draws for each ordered pair of labels", group="mining"
    )
    max_similarity: float | None = option(
        None, help="skip negatives with a cosine above this: likely duplicates or wrong labels", group="mining"
    )
    candidates: str | None = option(
        None,
        help="FAISS index that proposes negatives, such as PCA128,HNSW32, for more than about 100,000 photos; exact "
        "distances rank its proposals (default: compare all pairs)",
        metavar="FACTORY",
        group="mining",
    )
    candidate_parameters: str | None = option(None, help=CANDIDATE_PARAMETERS, metavar="TEXT", group="mining")
    seed: int = option(0, help="seed of the random draws", group="mining")

    def __post_init__(self) -> None:
        require_at_least(self, _AT_LEAST)
        if self.seed > MOST_SEED:
            raise UserError(f"--seed must be at most {MOST_SEED}, not {self.seed}")
        if self.candidates and self.strategy == "random":
            raise UserError("--candidates proposes the nearest negatives; --strategy random draws them, so drop one")
        require_candidates(self.candidates, self.candidate_parameters)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class MineConfig(Mining, TaskOptions):
    """The flags of `jobs/mine.py`."""

    manifest: str = option(help="manifest with the labels", metavar="FILE")
    descriptors: str = option(help="folder made by extract.py", metavar="DIR")
    out: str = option(help="folder for triplets.parquet", metavar="DIR")
    split: str = option("train", help="split to mine from")
