"""The settings of an import."""

from dataclasses import dataclass

from dim.config import option
from dim.data.limits import MEGAPIXELS, MEGAPIXELS_HELP, Limited

# The module of each layout, in which the function has the layout's name.
LAYOUTS = {
    "oxford5k": "oxford_paris",
    "paris6k": "oxford_paris",
    "roxford5k": "oxford_paris",
    "rparis6k": "oxford_paris",
    "holidays": "holidays",
    "ukbench": "ukbench",
    "gldv2": "gldv2",
    "sop": "sop",
    "cub": "cub",
}


@dataclass(frozen=True)
class ImportConfig(Limited):
    """The flags of import.py."""

    layout: str = option(help=f"which benchmark: {', '.join(LAYOUTS)}", positional=True)
    source: str = option(help="the folder of the benchmark as distributed", positional=True)
    out: str = option(help="folder for manifest.parquet, ground_truth.parquet and problems.csv", metavar="DIR")
    max_megapixels: float = option(MEGAPIXELS, MEGAPIXELS_HELP)
