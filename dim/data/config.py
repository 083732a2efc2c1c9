"""The settings of a split and of an import."""

from dataclasses import dataclass
from typing import Literal

from dim.app.config import option
from dim.data.limits import MEGAPIXELS, MEGAPIXELS_HELP, Limited

_BY_LABEL = "by label: whole labels to val and test (the default)"
_PER_LABEL = "per label: some photos of each label to val and test"


Resize = Literal["squash", "long-side"]


@dataclass(frozen=True)
class SplitConfig(Limited):
    """The flags of split.py."""

    images: str = option(
        help="a folder with one sub-folder per label, maybe within train, val and test; or a table with path and label",
        positional=True,
    )
    out: str = option(help="the manifest to write, .parquet or .csv", metavar="M")
    val_labels: float | None = option(None, "share of the labels that go to val (default: 0.1)", group=_BY_LABEL)
    test_labels: float | None = option(None, "share of the labels that go to test (default: 0.2)", group=_BY_LABEL)
    val_per_label: int | None = option(None, "photos of each label that go to val (default: 0)", group=_PER_LABEL)
    test_per_label: int | None = option(None, "photos of each label that go to test (default: 0)", group=_PER_LABEL)
    min_per_label: int | None = option(
        None, "leave out labels with fewer photos (default: 2; per label, one more than go to val and test)"
    )
    ignore_label: tuple[str, ...] = option((), "leave out this label; may be given more than once", metavar="L")
    seed: int = option(0, "which labels or photos go where")
    max_megapixels: float = option(MEGAPIXELS, MEGAPIXELS_HELP)


# The benchmarks that import.py reads. Their functions, which --help must not import, are `import_job.IMPORTERS`.
LAYOUTS = ("oxford5k", "paris6k", "roxford5k", "rparis6k", "holidays", "ukbench", "gldv2", "sop", "cub")


@dataclass(frozen=True)
class ImportConfig(Limited):
    """The flags of import.py."""

    layout: str = option(help=f"which benchmark: {', '.join(LAYOUTS)}", positional=True)
    source: str = option(help="the folder of the benchmark as distributed", positional=True)
    out: str = option(help="folder for manifest.parquet, ground_truth.parquet and problems.csv", metavar="DIR")
    max_megapixels: float = option(MEGAPIXELS, MEGAPIXELS_HELP)
