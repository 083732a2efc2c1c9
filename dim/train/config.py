"""The settings of a training run."""

from dataclasses import dataclass
from typing import Literal

from dim.app.config import flag_name, option
from dim.data.config import Resize
from dim.data.limits import MEGAPIXELS, MEGAPIXELS_HELP, Limited
from dim.errors import UserError
from dim.mine.config import Mining

TrainLayers = Literal["pca", "block5", "all"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Mining, Limited):
    """What `jobs/train.py` does; each field is a flag. Raises UserError where a value is out of range."""

    manifest: str | None = option(
        None,
        help="photos with label and split; the shipped demo set if not given",
        metavar="FILE",
        group="input and output",
    )
    out: str = option(
        "runs/demo", help="folder of the run; the same command resumes", metavar="DIR", group="input and output"
    )
    root: str | None = option(
        None, help="refuse photos outside this folder, links resolved", metavar="DIR", group="input and output"
    )
    mlflow: str | None = option(
        None,
        help="log to MLflow, too: where it keeps its runs, such as http://host:5000 (experiment dim)",
        metavar="URI",
        group="input and output",
    )
    model: str = option("vgg16-gem", help="model folder, or a name such as vgg16-gem@block5_conv3", group="network")
    weights: str | None = option(
        None,
        help="weights of an off-the-shelf network: .npz or .h5, imagenet (a download) or random",
        metavar="FILE",
        group="network",
    )
    pooling: str | None = option(
        None, help="mac, spoc, spoc-prior, gem, crow or rmac; of the model if not given", group="network"
    )
    layer: str | None = option(None, help="layer to pool; of the model if not given", group="network")
    preprocessing: Literal["caffe", "unit", "symmetric", "torch"] | None = option(
        None, help="what the weights expect of the input; of the model if not given", group="network"
    )
    image_size: int | None = option(
        None, help="side, or longest side, in pixels; of the model if not given", group="network"
    )
    resize: Resize | None = option(
        None, help="squash to a square or keep the aspect; of the model if not given", group="network"
    )
    dimension: int = option(512, help="outputs of the PCA layer, if the model has none yet", group="network")
    power: float = option(0.25, help="eigenvalue power of the PCA's fit: 0 rotates, 0.5 whitens", group="network")
    train_layers: TrainLayers = option(
        "block5", help="the PCA layer, the last block and PCA, or everything", group="fitting"
    )
    epochs: int = option(3, help="epochs; more than before continues a finished run", group="fitting")
    batch_size: int = option(32, help="triplets a step, over all workers", group="fitting")
    learning_rate: float = option(1e-5, help="of Adam", group="fitting")
    optimizer: Literal["adam", "sgd"] = option("adam", help="Adam, or plain gradient descent", group="fitting")
    rotation: float = option(0.0, help="largest random rotation, degrees", group="fitting")
    crop: float = option(0.0, help="largest share of each side that a random crop removes", group="fitting")
    variants: int = option(
        0,
        help="random variants of each photo, drawn once, whose frozen layers are computed once; 0: a new one each "
        "epoch, which takes the whole network at each step",
        group="fitting",
    )
    top: int | None = option(1600, help="triplets an epoch, the hardest", group="mining")
    mine_every: int = option(1, help="epochs between minings", group="mining")
    max_megapixels: float = option(MEGAPIXELS, help=MEGAPIXELS_HELP, group="machine")
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", help="bfloat16 where the hardware is made for it, else float32", group="machine"
    )
    workers: int = option(
        1, help="training processes; after a loss, as many go on as there is room for", group="machine"
    )
    gpus_per_worker: float | None = option(
        None, help="GPUs of each, or a share of one; 1 where there are any", group="machine"
    )
    scratch: str | None = option(
        None,
        help="folder for the frozen layers' activations, on each node; $DIM_SCRATCH, else in the temporary folder",
        metavar="DIR",
        group="machine",
    )
    scratch_gigabytes: float = option(
        50.0, help="most that they may take on a node; the rest is recomputed", group="machine"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {
            "dimension": 1,
            "epochs": 1,
            "batch_size": 1,
            "mine_every": 1,
            "workers": 1,
            "learning_rate": 0,
            "variants": 0,
        }
        for name, value in least.items():
            if not getattr(self, name) >= value:
                raise UserError(f"{flag_name(name)} must be at least {value}, not {getattr(self, name)}")
        for name, most in {"power": 1.0, "crop": 0.9, "rotation": 180.0}.items():
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"{flag_name(name)} must be from 0 to {most}, not {getattr(self, name)}")
        gpus = float(self.gpus_per_worker or 1)
        if not (0 < gpus <= 1 or (gpus > 1 and gpus.is_integer())):
            raise UserError(f"--gpus-per-worker must be a share of one GPU or a number of them, not {gpus:g}")
        if self.batch_size < self.workers * max(gpus, 1):
            each = f" of {gpus:g} GPUs" if gpus > 1 else ""
            raise UserError(
                f"--batch-size {self.batch_size} gives {self.workers} workers{each} less than a triplet each"
            )
        Limited.__post_init__(self)
