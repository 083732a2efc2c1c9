"""The flags of nightly.py, and the evaluations that its YAML file lists."""

from dataclasses import dataclass

from dim.app.config import flag_name, option
from dim.errors import UserError
from dim.evaluate.config import ProtocolOptions
from dim.extract.config import Extraction


@dataclass(frozen=True, kw_only=True)
class Measurement(ProtocolOptions):
    """One evaluation of the night, with its gates. Raises UserError if a gate is out of range."""

    name: str = option(help="name in the history")
    manifest: str = option(help="Parquet or CSV of all photos to extract and index; the same path every night")
    min_map: float | None = option(None, help="gate: the least mAP")
    max_drop: float | None = option(
        None, help="gate: the most that mAP may fall below that of the last accepted network on the same photos"
    )
    significance: float = option(
        0.05,
        help="gate: refuse a fall in mAP with a one-sided p-value below this, which is also how often an equally good "
        "network is refused; 0: never refuse",
    )

    @property
    def refuses_falls(self) -> bool:
        """Whether a gate refuses a fall in mAP from the network of the last accepted night to tonight's."""
        return self.max_drop is not None or self.significance > 0

    def __post_init__(self) -> None:
        for name in ("min_map", "max_drop", "significance"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:  # a gate at NaN would refuse nothing
                raise UserError(f"{flag_name(name)[2:]} of {self.name!r} must be from 0 to 1, not {value}")


@dataclass(frozen=True, kw_only=True)
class NightlyConfig(Extraction):
    """The keys of the YAML file of `jobs/nightly.py`. Each key but `evaluations` is also a flag."""

    out: str = option(help="folder of the history and of all nights", metavar="DIR", group="input and output")
    model: str = option(
        help="model folder, folder of a training run (the network that it returned), or a name such as vgg16-gem",
        metavar="X",
        group="input and output",
    )
    evaluations: tuple[Measurement, ...] = option(
        help="what to measure: name, manifest, protocol, ground-truth, split, min-map, max-drop, significance",
        group="input and output",
    )
    whitening: str | None = option(None, help="whitening file to apply", metavar="FILE", group="input and output")
    factory: str = option("Flat", help="FAISS's index_factory string, as for index.py", group="input and output")
    date: str | None = option(
        None, help="date of the night, YYYY-MM-DD (default: today in UTC)", metavar="DATE", group="input and output"
    )
    accept: bool = option(
        False, help="accept the night as the new baseline although a gate is not met", group="input and output"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [measurement.name for measurement in self.evaluations]
        if not names:
            raise UserError("evaluations is empty; list at least one, with its name and manifest")
        for name in names:
            if not name or "/" in name or name.startswith("."):
                raise UserError(f"evaluations: the name {name!r} must be usable as a folder's name; choose another")
            if names.count(name) > 1:
                raise UserError(f"evaluations: two have the name {name!r}; rename one")
