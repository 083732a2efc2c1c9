"""The settings of fitting a whitening."""

from dataclasses import dataclass
from typing import Literal

from dim.app.config import flag_name, option
from dim.errors import UserError
from dim.extract.config import Extraction, Split

POWER = 0.25  # of the eigenvalues of a PCA, where nothing else is asked


@dataclass(frozen=True, kw_only=True)
class WhitenConfig(Extraction):
    """What `jobs/whiten.py` does; each field is a flag. The network and the machine are for `model`.

    Raises UserError where flags don't fit each other.
    """

    manifest: str = option(
        help="manifest that names the split and the labels", metavar="FILE", group="input and output"
    )
    descriptors: str | None = option(
        None,
        help="folder of descriptors made by extract.py; --out is a .npz file",
        metavar="DIR",
        group="input and output",
    )
    model: str | None = option(
        None,
        help="model folder or name to make the whitening part of; --out is a model folder",
        group="input and output",
    )
    out: str = option(help="what to write", metavar="PATH", group="input and output")
    split: Split = option(
        "train", help="split to learn from; never the one that is evaluated", group="input and output"
    )
    kind: Literal["pca", "learned"] = option(
        "pca", help="pca, or learned from the images of one label", group="whitening"
    )
    regions: bool = option(False, help="whiten R-MAC's regions, not the descriptors; for --model", group="whitening")
    dimension: int | None = option(None, help="values kept (default: as many as there can be)", group="whitening")
    power: float | None = option(
        None, help=f"0 rotates only, 0.5 whitens fully; for pca (default: {POWER})", group="whitening"
    )
    shrinkage: float | None = option(
        None,
        help="0 learns as published, 1 whitens nothing; for learned (default: by how few pairs there are)",
        group="whitening",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.descriptors is None) == (self.model is None):
            raise UserError("give --descriptors DIR for a whitening file, or --model X for a model with it")
        for name, kind in (("power", "pca"), ("shrinkage", "learned")):
            value = getattr(self, name)
            if value is not None and (self.kind != kind or not 0 <= value <= 1):
                raise UserError(f"{flag_name(name)} {value}: it is from 0 to 1, and for --kind {kind} only")
        if self.regions and (self.model is None or self.kind != "pca"):
            raise UserError("--regions is for --model and --kind pca: regions are not kept, and have no labels")
        if self.model is not None and self.scales != (1.0,):
            raise UserError("--scales: the whitening in a model sees one scale at a time; give them to extract.py")
