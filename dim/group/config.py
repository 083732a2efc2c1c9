"""The flags of group.py."""

from dataclasses import dataclass

from dim.app.config import flag_name, option, require_at_least
from dim.app.memory import TaskOptions
from dim.errors import UserError
from dim.extract.config import Split

NEIGHBOURS = 10  # nearest other photos that a photo may be connected with, by default


@dataclass(frozen=True, kw_only=True)
class GroupConfig(TaskOptions):
    """The flags of `jobs/group.py`. Raises UserError if a value is out of range."""

    manifest: str = option(
        help="Parquet or CSV of the photos; labels are not used", metavar="FILE", group="input and output"
    )
    descriptors: str = option(help="folder made by extract.py", metavar="DIR", group="input and output")
    out: str = option(
        help="folder for the groups, the manifest and report.html", metavar="DIR", group="input and output"
    )
    split: Split | None = option(None, help="only this split (default: all rows)", group="input and output")
    whitening: str | None = option(
        None, help="whitening file to apply; whitened descriptors group better", metavar="FILE",
        group="input and output",
    )  # fmt: skip
    root: str | None = option(
        None, help="refuse photos outside this folder, after resolving links", metavar="DIR", group="input and output"
    )
    corrections: str | None = option(
        None,
        help="table with the columns image_id, other_id and kind (must-link: one group; cannot-link: two), such as the "
        "page saves; corrections that are left out no longer count",
        metavar="FILE",
        group="input and output",
    )
    neighbours: int = option(NEIGHBOURS, help="nearest other photos that a photo may be connected with", group="groups")
    index: str | None = option(
        None,
        help="index of the descriptors, made by index.py, in which neighbours are searched, for more than about a "
        "million photos (default: compare all photos)",
        metavar="DIR",
        group="groups",
    )
    parameters: str | None = option(
        None, help="FAISS's search parameters, such as nprobe=16 or efSearch=64", metavar="TEXT", group="groups"
    )
    threshold: float | None = option(
        None, help="least mean cosine of two groups that are merged (default: chosen on the photos)", group="groups"
    )
    copies: float = option(0.92, help="the same for copies of one photo", group="groups")
    min_group: int = option(
        2, help="give no label to groups with fewer photos; a photo alone is always a label of its own", group="groups"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, {"neighbours": 1, "min_group": 2})
        for name in ("threshold", "copies"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(f"{flag_name(name)} must be above 0 and at most 1, not {value}")
        if self.parameters and not self.index:
            raise UserError("--parameters are for an index; give --index DIR, too")
