"""The flags of split.py and import.py, and the flags of every job that decodes photos."""

from dataclasses import dataclass
from typing import Literal

from dim.app.config import flag_name, option
from dim.app.memory import MemoryOptions
from dim.data.limits import MEGAPIXELS, Limits, of_megapixels
from dim.errors import UserError

_BY_LABEL = "by label: whole labels to val and test (the default)"
_PER_LABEL = "per label: some photos of each label to val and test"
Resize = Literal["squash", "long-side"]


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(MemoryOptions):
    """The flags --max-megapixels and --memory. Raises UserError if a value is out of range."""

    max_megapixels: float = option(
        MEGAPIXELS, help="decode no photo that is larger than this; a larger one is an error", group="machine"
    )

    def __post_init__(self) -> None:
        of_megapixels(self.max_megapixels, None)
        super().__post_init__()

    @property
    def limits(self) -> Limits:
        """The most pixels and bytes that a photo may have, and the memory for all that are decoded at a time."""
        return of_megapixels(self.max_megapixels, self.memory)


@dataclass(frozen=True)
class SplitConfig(DecodeOptions):
    """The flags of `jobs/split.py`."""

    images: str = option(
        help="folder with one sub-folder per label, also inside train, val and test; or a table with path and label",
        positional=True,
    )
    out: str = option(help="manifest to write, .parquet or .csv", metavar="M")
    val_labels: float | None = option(None, "share of the labels that go to val (default: 0.1)", group=_BY_LABEL)
    test_labels: float | None = option(None, "share of the labels that go to test (default: 0.2)", group=_BY_LABEL)
    val_per_label: int | None = option(None, "photos of each label that go to val (default: 0)", group=_PER_LABEL)
    test_per_label: int | None = option(None, "photos of each label that go to test (default: 0)", group=_PER_LABEL)
    min_per_label: int | None = option(
        None, "leave out labels with fewer photos (default: 2; per label, one more than go to val and test)"
    )
    ignore_label: tuple[str, ...] = option((), "leave out this label; may be given more than once", metavar="L")
    seed: int = option(0, "seed of the random choice of labels or photos")


# The names of all benchmarks. `import_job.IMPORTERS` has their importers, but importing those would slow down --help.
LAYOUTS = (
    "oxford5k", "paris6k", "roxford5k", "rparis6k", "holidays", "ukbench", "gldv2", "sop", "cub", "grocery",
    "grocery-lists", "ilias",
)  # fmt: skip
EMBEDDINGS = "embeddings"  # the layout that is no benchmark but descriptors
_EMBEDDINGS = "descriptors made elsewhere (embeddings)"


@dataclass(frozen=True)
class ImportConfig(DecodeOptions):
    """The flags of `jobs/import.py`. Raises UserError if a flag is not for this layout."""

    layout: str = option(
        help=f"benchmark: {', '.join(LAYOUTS)}; or {EMBEDDINGS}: descriptors made elsewhere", positional=True
    )
    source: str = option(
        help="folder of the benchmark as distributed; or the descriptors: an .npy or Parquet file, or a folder of them",
        positional=True,
    )
    out: str = option(
        help="folder for manifest.parquet, ground_truth.parquet and problems.csv, or for the descriptors", metavar="DIR"
    )
    distractors: str | None = option(
        None,
        help="ilias: 100m (all tars in SOURCE/yfcc100m, the default), 5m (mini-ILIAS), none, or a folder of tars",
        metavar="WHICH",
    )
    name: str | None = option(
        None, help="the network that made them; only descriptors of one name are compared", group=_EMBEDDINGS
    )
    ids: str | None = option(None, help="text file with one id a line, for .npy", metavar="FILE", group=_EMBEDDINGS)
    id_column: str | None = option(
        None, help="column of the ids (default: image_id, id, image_path, … whichever there is)", group=_EMBEDDINGS
    )
    vector_column: str | None = option(
        None, help="column of the vectors (default: the only one with lists of numbers)", group=_EMBEDDINGS
    )
    normalise: bool = option(False, help="scale each vector to norm 1", group=_EMBEDDINGS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distractors and self.layout != "ilias":
            raise UserError(f"--distractors is for import.py ilias, not for {self.layout!r}")
        for name in ("name", "ids", "id_column", "vector_column", "normalise"):
            if getattr(self, name) and self.layout != EMBEDDINGS:
                raise UserError(f"{flag_name(name)} is for import.py {EMBEDDINGS}, not for {self.layout!r}")
