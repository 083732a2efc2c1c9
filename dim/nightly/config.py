"""The settings of a nightly evaluation."""

from dataclasses import dataclass

from dim.app.config import flag_name, option
from dim.errors import UserError
from dim.evaluate.config import ProtocolName
from dim.extract.config import Extraction, Split


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One figure of the night: what is measured, and the gates that it has to meet."""

    name: str = option(help="how the history calls it")
    manifest: str = option(help="Parquet or CSV of all photos to extract and index; by the same path every night")
    protocol: ProtocolName = option("labels", help="what counts as found")
    ground_truth: str | None = option(None, help="query_id, image_id, grade; for oxford, revisited, gldv2")
    split: Split | None = option(None, help="queries and database; all rows if not given")
    query_split: Split | None = option(None, help="split of the queries")
    database_split: Split | None = option(None, help="split of the database")
    min_map: float | None = option(None, help="gate: the least mAP")
    max_drop: float | None = option(
        None, help="gate: the most that mAP may fall below that of the last accepted night's network on the same photos"
    )
    significance: float = option(
        0.05,
        help="gate: refuse a fall that chance explains with a lower probability than this, one-sided; so often is a "
        "network refused that is no worse; 0: never",
    )

    @property
    def refuses_falls(self) -> bool:
        """Whether a gate holds the network against that of the last accepted night."""
        return self.max_drop is not None or self.significance > 0

    def __post_init__(self) -> None:
        for name in ("min_map", "max_drop", "significance"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:  # NaN, or a percentage, would be no gate at all
                raise UserError(f"{flag_name(name)[2:]} of {self.name!r} must be from 0 to 1, not {value}")


@dataclass(frozen=True, kw_only=True)
class NightlyConfig(Extraction):
    """What `jobs/nightly.py` does; each field is a key of its YAML file, and all but `evaluations` are flags."""

    out: str = option(help="folder of the history and of all nights", metavar="DIR", group="input and output")
    model: str = option(
        help="model folder, the folder of a training run (its best epoch), or a name such as vgg16-gem",
        metavar="X",
        group="input and output",
    )
    evaluations: tuple[Measurement, ...] = option(
        help="what is measured: name, manifest, protocol, ground-truth, split, min-map, max-drop, significance",
        group="input and output",
    )
    whitening: str | None = option(None, help="whitening file to apply", metavar="FILE", group="input and output")
    factory: str = option("Flat", help="FAISS's index_factory string, as for index.py", group="input and output")
    date: str | None = option(
        None, help="the night, YYYY-MM-DD; today in UTC if not given", metavar="DATE", group="input and output"
    )
    accept: bool = option(
        False, help="take the night for the new baseline although a gate is not met", group="input and output"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [measurement.name for measurement in self.evaluations]
        if not names:
            raise UserError("evaluations is empty; name at least one, with its manifest")
        for name in names:
            if names.count(name) > 1 or not name or "/" in name or name.startswith("."):
                raise UserError(f"evaluations: {name!r} must be a file's name, and stand once")
