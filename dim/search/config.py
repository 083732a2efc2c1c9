"""The flags of index.py, the flags of search.py, and the flags for the steps after a search."""

from dataclasses import dataclass
from typing import Literal

from dim.app.config import option
from dim.app.memory import TaskOptions
from dim.errors import UserError
from dim.extract.config import Extraction

Expansion = Literal["aqe", "alpha-qe", "dba", "k-reciprocal", "diffusion"]

_EXPANSION = (
    "step after the search; several steps run in the order given. "
    "aqe: replace a query by the mean with its neighbours; costs a second search. "
    "alpha-qe: the same, each neighbour weighted by similarity³. "
    "dba: replace each row of the database in the same way; costs a search per row. "
    "k-reciprocal: rank by common neighbours; costs a search per row, then about 2 ms per query. "
    "diffusion: rank by diffusion on the graph of neighbours; costs a search per row, then 20 products with the graph "
    "per query"
)


# `--candidates` of audit.py, mine.py and train.py.
CANDIDATE_PARAMETERS = "search parameters of the index of --candidates, such as efSearch=64 or nprobe=32"


def require_candidates(candidates: str | None, parameters: str | None) -> None:
    """Raises UserError if the search `parameters` have no index of `candidates`."""
    if parameters and not candidates:
        raise UserError("--candidate-parameters are for an index; give --candidates FACTORY, too")


@dataclass(frozen=True, kw_only=True)
class AfterSearch:
    """The flags for the steps after a search. Every job that searches has these flags."""

    expansion: tuple[Expansion, ...] = option((), help=_EXPANSION, group="after the search")
    neighbours: int | None = option(
        None, help="neighbours that a step uses (default: aqe 10, k-reciprocal 20, others 50)", group="after the search"
    )
    rerank: str | None = option(
        None,
        help="look at the first N photos of each list (default: 100) and rank them again, last of all. localise: by "
        "their region that is most similar to the query; geometry: by their points that match the query's under one "
        "rotation, scale and shift. Both need the photos, and a pass of the network over them",
        metavar="METHOD[:N]",
        group="after the search",
    )


@dataclass(frozen=True)
class IndexConfig(TaskOptions):
    """The flags of `jobs/index.py`."""

    descriptors: str = option(help="folder made by extract.py", metavar="DIR")
    out: str = option(help="folder for knn.index and ids.parquet", metavar="DIR")
    factory: str = option(
        "Flat",
        help="FAISS's index_factory string; Flat is exact and written straight to disk; IVF1024,Flat, HNSW32 and "
        "IVF1024,PQ64 are faster or smaller, and approximate",
    )
    whitening: str | None = option(None, help="whitening file to apply", metavar="FILE")
    train_rows: int | None = option(
        None,
        help="rows drawn to train the index (default: 100 per IVF list, at least 65536, at most half of the memory)",
    )
    seed: int = option(0, help="seed of the draw and of the clustering")
    parts: int | None = option(None, help="files into which the index is split (default: as few as the memory allows)")


@dataclass(frozen=True, kw_only=True)
class SearchConfig(AfterSearch, Extraction):
    """The flags of `jobs/search.py`."""

    index: str = option(
        help="folder made by index.py, or one made by extract.py, to search exactly from disk", metavar="DIR",
        group="input and output",
    )  # fmt: skip
    queries: str = option(
        help="photo, folder of photos, manifest, or folder of descriptors", metavar="PATH", group="input and output"
    )
    out: str = option(help="folder for ranked.parquet", metavar="DIR", group="input and output")
    report: bool = option(
        True, help="write report.html and map.html, which reads the photos again", group="input and output"
    )
    model: str | None = option(
        None, help="model that made the index; needed if the queries are photos", metavar="X", group="input and output"
    )
    whitening: str | None = option(
        None, help="whitening file of the index, to apply to the queries", metavar="FILE", group="input and output"
    )
    top: int = option(10, help="rows of a ranked list", group="search")
    manifest: str | None = option(
        None, help="search only the photos of this manifest, or those that --label and --in-split choose from it",
        metavar="FILE", group="search",
    )  # fmt: skip
    label: tuple[str, ...] = option(
        (), help="search only photos with this label in --manifest; may be given more than once", metavar="L",
        group="search",
    )  # fmt: skip
    in_split: str | None = option(
        None, help="search only photos of this split in --manifest", metavar="S", group="search"
    )
    parameters: str | None = option(
        None, help="FAISS's search parameters, such as nprobe=16 or efSearch=128", group="search"
    )
