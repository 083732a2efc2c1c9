"""The settings of what comes after a search, of index.py, search.py and export.py."""

from dataclasses import dataclass
from typing import Literal

from dim.app.config import option
from dim.extract.config import Extraction

Expansion = Literal["aqe", "alpha-qe", "dba", "k-reciprocal", "diffusion"]

_EXPANSION = (
    "what to do after the search; given again, the next follows. "
    "aqe: a query moves to the mean with its neighbours; costs a second search. "
    "alpha-qe: the same, each neighbour weighted by similarity³. "
    "dba: so does each row of the database; costs a search for each. "
    "k-reciprocal: ranks by common neighbours; costs a search for each row, then about 2 ms a query. "
    "diffusion: ranks by a diffusion over the graph of neighbours; costs a search for each row, then 20 products with "
    "the graph a query"
)


@dataclass(frozen=True, kw_only=True)
class AfterSearch:
    """What is done after the search, in every job that searches."""

    expansion: tuple[Expansion, ...] = option((), help=_EXPANSION, group="after the search")
    neighbours: int | None = option(
        None, help="neighbours looked at (default: aqe 10, k-reciprocal 20, others 50)", group="after the search"
    )


@dataclass(frozen=True)
class IndexConfig:
    """What `jobs/index.py` does; each field is a flag."""

    descriptors: str = option(help="folder that extract.py made", metavar="DIR")
    out: str = option(help="folder for knn.index and ids.parquet", metavar="DIR")
    factory: str = option(
        "Flat",
        help="FAISS's index_factory string: Flat is exact and written straight to disk; IVF1024,Flat, HNSW32 or "
        "IVF1024,PQ64 are faster or smaller, and approximate",
    )
    whitening: str | None = option(None, help="whitening file to apply", metavar="FILE")
    train_rows: int | None = option(
        None, help="rows drawn to train the index (default: 100 for each list of an IVF, at least 65536)"
    )
    seed: int = option(0, help="seed of the draw and of the clustering")


@dataclass(frozen=True, kw_only=True)
class SearchConfig(AfterSearch, Extraction):
    """What `jobs/search.py` does; each field is a flag."""

    index: str = option(
        help="folder that index.py made, or one of extract.py, which is searched exactly from disk",
        metavar="DIR",
        group="input and output",
    )
    queries: str = option(
        help="a photo, a folder of photos, a manifest, or a folder of descriptors",
        metavar="PATH",
        group="input and output",
    )
    out: str = option(help="folder for ranked.parquet", metavar="DIR", group="input and output")
    report: bool = option(
        True, help="write report.html and map.html, for which photos are read", group="input and output"
    )
    model: str | None = option(
        None, help="what made the index; not needed for descriptors", metavar="X", group="input and output"
    )
    whitening: str | None = option(
        None, help="whitening file of the index, to apply to the queries", metavar="FILE", group="input and output"
    )
    top: int = option(10, help="rows of a ranked list", group="search")
    parameters: str | None = option(
        None, help="FAISS's search parameters, such as nprobe=16 or efSearch=128", group="search"
    )
