"""The flags of train.py."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from dim.app.config import flag_name, option, require_at_least
from dim.errors import UserError
from dim.extract.config import NetworkOptions
from dim.mine.config import Mining

TrainLayers = Literal["pca", "block5", "all"]
FinalWhitening = Literal["none", "pca", "learned"]
_COUNTS = ("dimension", "epochs", "batch_size", "mine_every", "workers")
_AT_LEAST = {**dict.fromkeys(_COUNTS, 1), "learning_rate": 0, "variants": 0}
# Flags that may change when a run is resumed: the number of epochs, what follows the last one, the places of files, and
# the machines.
FREE = {"root", "epochs", "final_whitening", "out", "mlflow", "workers", "gpus_per_worker", "scratch"}
FREE |= {"scratch_gigabytes"}
# Default triplets per epoch: for each training photo, and in all.
PER_PHOTO, MOST_TRIPLETS = 2, 1600


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Mining, NetworkOptions):
    """The flags of `jobs/train.py`. Raises UserError if a value is out of range."""

    manifest: str | None = option(
        None, help="photos with label and split (default: the demo photos)", metavar="FILE", group="input and output"
    )
    out: str = option(
        "runs/demo", help="folder of the run; the same command resumes", metavar="DIR", group="input and output"
    )
    mlflow: str | None = option(
        None,
        help="log to this MLflow server or folder, too, such as http://host:5000 (experiment dim)",
        metavar="URI",
        group="input and output",
    )
    model: str = option(
        "vgg16-gem", help="model folder, or a name such as vgg16-gem@block5_conv3", metavar="X", group="network"
    )
    layer: str | None = option(None, help="layer to pool (default: the model's)", group="network")
    dimension: int = option(512, help="outputs of the PCA layer, if the model has none yet", group="network")
    power: float = option(0.25, help="eigenvalue power of the PCA: 0 rotates only, 0.5 whitens", group="network")
    train_layers: TrainLayers = option(
        "block5",
        help="what to train: only the PCA layer (and R-MAC's whitening of regions), also the last block, or all",
        group="fitting",
    )
    epochs: int = option(3, help="epochs; a larger number than before continues a finished run", group="fitting")
    batch_size: int = option(32, help="triplets per step, over all workers", group="fitting")
    learning_rate: float = option(4e-5, help="learning rate of the optimizer", group="fitting")
    optimizer: Literal["adam", "sgd"] = option("adam", help="Adam, or plain gradient descent", group="fitting")
    rotation: float = option(0.0, help="largest random rotation, in degrees", group="fitting")
    crop: float = option(0.0, help="largest share of each side that a random crop removes", group="fitting")
    variants: int = option(
        0,
        help="augmented views per photo, whose frozen features are cached; 0: a new view in each epoch, for which each "
        "step runs the whole network",
        group="fitting",
    )
    final_whitening: FinalWhitening = option(
        "none",
        help="whitening fitted to the trained descriptors after the last epoch, kept if it raises mAP on split val: "
        "pca, or learned from pairs of photos with the same label",
        group="fitting",
    )
    top: int | None = option(
        None,
        help=f"triplets per epoch, the hardest (default: {PER_PHOTO} for each training photo, at most {MOST_TRIPLETS})",
        group="mining",
    )
    mine_every: int = option(1, help="epochs between minings", group="mining")
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", help="auto: bfloat16 if the hardware accelerates it, else float32", group="machine"
    )
    workers: int = option(
        1, help="training processes; if a node is lost, training goes on with as many as fit", group="machine"
    )
    gpus_per_worker: float | None = option(
        None, help="GPUs per worker, or a share of one (default: 1 if the cluster has GPUs)", group="machine"
    )
    scratch: str | None = option(
        None,
        help="folder on each node for the feature cache (default: $DIM_SCRATCH, else the temporary folder)",
        metavar="DIR",
        group="machine",
    )
    scratch_gigabytes: float = option(
        50.0, help="largest feature cache on a node; features beyond it are computed again", group="machine"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, _AT_LEAST)
        for name, most in {"power": 1.0, "crop": 0.9, "rotation": 180.0}.items():
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"{flag_name(name)} must be from 0 to {most}, not {getattr(self, name)}")
        gpus = float(self.gpus_per_worker or 1)
        if not (0 < gpus <= 1 or (gpus > 1 and gpus.is_integer())):
            raise UserError(f"--gpus-per-worker must be a share of one GPU or a whole number of GPUs, not {gpus:g}")
        least = self.workers * max(gpus, 1)  # each replica needs a triplet
        if self.batch_size < least:
            each = f"{least:g} GPUs" if gpus > 1 else f"{self.workers} workers"
            raise UserError(
                f"--batch-size {self.batch_size} gives less than a triplet to each of {each}; give at least {least:g}"
            )

    def lasting(self) -> dict[str, Any]:
        """The flags that decide what a run learns, by name. A run is resumed only with the same values."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in FREE}

    def mining(self, photos: int) -> Mining:
        """The settings of an epoch's mining from `photos` training photos."""
        return self if self.top else dataclasses.replace(self, top=min(PER_PHOTO * photos, MOST_TRIPLETS))
