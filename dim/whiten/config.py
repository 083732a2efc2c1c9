"""The flags of whiten.py."""

from dataclasses import dataclass
from typing import Literal

from dim.app.config import flag_name, option
from dim.errors import UserError
from dim.extract.config import Extraction, Split

POWER = 0.25  # the default of --power: the PCA divides each direction by its eigenvalue to this power


@dataclass(frozen=True, kw_only=True)
class WhitenConfig(Extraction):
    """The flags of `jobs/whiten.py`. Raises UserError if a value is out of range or if flags don't fit each other.

    The flags about the network and the machine, which `Extraction` adds, have an effect only if `model` is given.
    """

    manifest: str = option(help="manifest with split and labels", metavar="FILE", group="input and output")
    descriptors: str | None = option(
        None, help="folder made by extract.py; --out is a .npz file", metavar="DIR", group="input and output"
    )
    model: str | None = option(
        None, help="model (folder or name) to whiten; --out is a model folder", metavar="X", group="input and output"
    )
    out: str = option(help="whitening file or model folder to write", metavar="PATH", group="input and output")
    split: Split = option(
        "train", help="split to learn from; never the one that is evaluated", group="input and output"
    )
    kind: Literal["pca", "learned"] = option(
        "pca", help="pca, or learned from pairs of images with the same label", group="whitening"
    )
    regions: bool = option(
        False, help="whiten R-MAC's regions instead of the descriptors; for --model", group="whitening"
    )
    dimension: int | None = option(None, help="values to keep (default: as many as possible)", group="whitening")
    power: float | None = option(
        None, help=f"0 rotates only, 0.5 whitens fully; for --kind pca (default: {POWER})", group="whitening"
    )
    shrinkage: float | None = option(
        None,
        help="0 learns as published, 1 does not whiten; for --kind learned (default: the fewer pairs, the higher)",
        group="whitening",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.descriptors is None) == (self.model is None):
            raise UserError("give --descriptors DIR for a whitening file, or --model X for a model with a whitening")
        for name, kind in (("power", "pca"), ("shrinkage", "learned")):
            value = getattr(self, name)
            if value is not None and self.kind != kind:
                raise UserError(f"{flag_name(name)} {value} is for --kind {kind} only; drop it")
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{flag_name(name)} must be from 0 to 1, not {value}")
        if self.regions and (self.model is None or self.kind != "pca"):
            raise UserError(
                "--regions needs --model and --kind pca: folders hold no regions, and regions have no labels"
            )
        if self.model is not None and self.scales != (1.0,):
            raise UserError("--scales: the whitening in a model sees one scale at a time; give --scales to extract.py")
