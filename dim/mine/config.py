"""The settings of mining: those that training shares (`Mining`), and the flags of mine.py."""

from dataclasses import dataclass
from typing import Literal

from dim.app.config import MOST_SEED, flag_name, option
from dim.errors import UserError

StrategyName = Literal["hardest", "distinct", "random"]
_COUNTS = ("top", "positives_per_anchor", "negatives_per_anchor", "candidates_per_pair")
_AT_LEAST = {**dict.fromkeys(_COUNTS, 1), "margin": 0, "max_similarity": -1, "seed": 0}


@dataclass(frozen=True)
class Mining:
    """Which triplets are candidates and which are kept. Raises UserError for a value out of range."""

    strategy: StrategyName = option(
        "hardest",
        help="hardest: the nearest negatives of each anchor; distinct: the same, at most one from each label; "
        "random: drawn for each ordered pair of labels",
        group="mining",
    )
    margin: float = option(0.1, help="margin of the triplet loss", group="mining")
    top: int | None = option(None, help="how many triplets to keep; not given: all whose loss is not 0", group="mining")
    positives_per_anchor: int = option(4, help="the farthest positives of each anchor", group="mining")
    negatives_per_anchor: int = option(5, help="the nearest negatives of each anchor", group="mining")
    candidates_per_pair: int = option(70, help="random: draws for each ordered pair of labels", group="mining")
    max_similarity: float | None = option(
        None, help="skip negatives with a cosine above this: likely duplicates or wrong labels", group="mining"
    )
    candidates: str | None = option(
        None,
        help="FAISS index that proposes negatives, such as PCA128,HNSW32, for more than some 100,000 photos; exact "
        "distances rank what it proposes; all pairs if not given",
        metavar="FACTORY",
        group="mining",
    )
    candidate_parameters: str | None = option(
        None, help="its search parameters, such as efSearch=64 or nprobe=32", metavar="TEXT", group="mining"
    )
    seed: int = option(0, help="seed of the random draws", group="mining")

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UserError(f"{flag_name(name)} must be at least {least}, not {value}")
        if self.seed > MOST_SEED:
            raise UserError(f"--seed must be at most {MOST_SEED}, not {self.seed}")
        if self.candidates and self.strategy == "random":
            raise UserError("--candidates proposes the nearest negatives; --strategy random draws them, so drop one")
        if self.candidate_parameters and not self.candidates:
            raise UserError("--candidate-parameters are for an index; give --candidates FACTORY, too")


@dataclass(frozen=True, kw_only=True)
class MineConfig(Mining):
    """The flags of mine.py."""

    manifest: str = option(help="manifest with the labels", metavar="FILE")
    descriptors: str = option(help="folder that extract.py wrote", metavar="DIR")
    out: str = option(help="folder for triplets.parquet", metavar="DIR")
    split: str = option("train", help="split to mine from")
