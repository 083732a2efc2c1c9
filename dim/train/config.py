"""The flags of train.py."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from dim.app.config import Options, flag_name, option, require_at_least
from dim.errors import UserError
from dim.extract.config import NetworkOptions
from dim.mine.config import Mining

TrainLayers = Literal["pca", "block5", "all"]
LossName = Literal["triplet", "contrastive", "ap", "multi-similarity"]
FinalWhitening = Literal["none", "pca", "learned"]
Labels = Literal["manifest", "groups"]
Preset = Literal["fast", "best"]
_COUNTS = ("dimension", "epochs", "batch_size", "mine_every", "workers")
_AT_LEAST = {**dict.fromkeys(_COUNTS, 1), "contrastive_margin": 0, "ap_bins": 2}
# Flags that may change when a run is resumed: when it ends, what follows the last epoch, the places of files, and the
# machines.
FREE = {"root", "epochs", "patience", "final_whitening", "out", "mlflow", "workers", "gpus_per_worker", "scratch"}
FREE |= {"scratch_gigabytes"}
# Default triplets per epoch: for each training photo, and in all.
PER_PHOTO, MOST_TRIPLETS = 2, 1600
# What each preset sets. Those of "fast" are the defaults of the flags.
PRESETS: dict[Preset, dict[str, Any]] = {
    "fast": {},
    "best": {
        "image_size": 448,
        "resize": "long-side",
        "loss": "ap",
        "batch_size": 400,
        "learning_rate": 1.5e-4,
        "epochs": 7,
    },
}


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(Options):
    """How the weights follow the gradient. `dim.train.optimizer` makes Keras's optimizer of them."""

    learning_rate: float = option(4e-5, help="learning rate of the optimizer, at its highest", group="optimizer")
    optimizer: Literal["adam", "sgd"] = option("adam", help="Adam, or plain gradient descent", group="optimizer")
    schedule: Literal["constant", "cosine"] = option(
        "constant",
        help="learning rate over all planned steps (--epochs times --top / --batch-size): the same, or falling to 0 by "
        "half a cosine; with fewer triplets than --top, the steps are fewer and the rate ends higher",
        group="optimizer",
    )
    warm_up: float = option(
        0.0, help="share of the planned steps in which the learning rate rises from 0", group="optimizer"
    )
    weight_decay: float = option(
        0.0,
        help="share of each weight, times the learning rate, that a step takes away (AdamW); biases and GeM's p keep "
        "theirs",
        group="optimizer",
    )
    clip_norm: float = option(
        0.0, help="largest norm of a batch's gradient, over all weights; 0: any", group="optimizer"
    )
    ema: float = option(
        0.0,
        help="momentum of the moving average of the weights, such as 0.99; steps and mining use the weights, split val "
        "and the returned network their average; 0: no average",
        group="optimizer",
    )
    patience: int | None = option(
        None, help="stop after this many epochs without a better mAP on split val (default: never)", group="optimizer"
    )

    def __post_init__(self) -> None:
        require_at_least(self, {"learning_rate": 0, "weight_decay": 0, "clip_norm": 0, "patience": 1})
        if not 0 <= self.warm_up <= 1:
            raise UserError(f"--warm-up must be from 0 to 1, not {self.warm_up}")
        if not 0 <= self.ema < 1:
            raise UserError(f"--ema must be at least 0 and less than 1, not {self.ema}")
        super().__post_init__()

    @property
    def scheduled(self) -> bool:
        """Whether the learning rate of a step depends on the number of epochs."""
        return self.schedule != "constant" or self.warm_up > 0


_MOST_CHANGE = {
    "rotation": 180, "crop": 0.9, "perspective": 0.4, "brightness": 1, "contrast": 1, "saturation": 1, "hue": 0.5
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AugmentationOptions(Options):
    """The random changes of the training photos. None stands for the preset's value with `augment`, else for off."""

    augment: bool = option(
        False,
        help="all of these changes, at values that fit photos of one object; each flag below wins over its value",
        group="augmentation",
    )
    rotation: float | None = option(None, help="largest random rotation, in degrees", group="augmentation")
    crop: float | None = option(None, help="largest share of the area that a random crop removes", group="augmentation")
    aspect: float | None = option(
        None, help="largest factor by which the shape of a crop differs from the photo's; 1: none", group="augmentation"
    )
    perspective: float | None = option(
        None, help="largest share of its side by which a corner moves inwards", group="augmentation"
    )
    brightness: float | None = option(
        None, help="largest change of the brightness; 0.3: by a factor from 0.7 to 1.3", group="augmentation"
    )
    contrast: float | None = option(None, help="largest change of the contrast", group="augmentation")
    saturation: float | None = option(None, help="largest change of the saturation", group="augmentation")
    hue: float | None = option(None, help="largest shift of the hue, as a share of the circle", group="augmentation")
    blur: float | None = option(
        None,
        help="largest standard deviation of a Gaussian blur, in pixels of the network's input",
        group="augmentation",
    )
    variants: int = option(
        0,
        help="augmented views per photo, whose frozen features are cached; 0: a new view in each epoch, for which each "
        "step runs the whole network",
        group="augmentation",
    )

    def __post_init__(self) -> None:
        require_at_least(self, {**dict.fromkeys(_MOST_CHANGE, 0), "blur": 0, "aspect": 1, "variants": 0})
        for name, most in _MOST_CHANGE.items():
            if (value := getattr(self, name)) is not None and value > most:
                raise UserError(f"{flag_name(name)} must be from 0 to {most}, not {value}")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Mining, NetworkOptions, OptimizerOptions, AugmentationOptions):
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
    preset: Preset = option(
        "fast",
        help="values of other flags, which win over it. fast: their defaults; best: "
        + ", ".join(f"{flag_name(name)} {value}" for name, value in PRESETS["best"].items())
        + ", for a better search after a longer training",
        presets=PRESETS,
        group="network",
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
    loss: LossName = option(
        "triplet",
        help="triplet or contrastive: of the mined triplets; ap (listwise average precision) or multi-similarity: of "
        "all photos of a batch, which may be larger than memory",
        group="fitting",
    )
    contrastive_margin: float = option(
        0.75, help="distance beyond which --loss contrastive ignores a negative", group="fitting"
    )
    ap_bins: int = option(20, help="bins into which --loss ap sorts the scores", group="fitting")
    epochs: int = option(
        3,
        help="epochs; a larger number than before continues a finished run, unless its learning rate was scheduled",
        group="fitting",
    )
    batch_size: int = option(32, help="triplets per step, over all workers", group="fitting")
    final_whitening: FinalWhitening = option(
        "learned",
        help="whitening fitted to the trained descriptors after the last epoch, kept if it raises mAP on split val: "
        "pca, or learned from pairs of photos with the same label",
        group="fitting",
    )
    labels: Labels = option(
        "manifest",
        help="labels of split train: the manifest's or, for photos without any, groups of similar photos, which each "
        "mining finds anew with the current network",
        group="mining",
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
        if not 0 <= self.power <= 1:
            raise UserError(f"--power must be from 0 to 1, not {self.power}")
        gpus = float(self.gpus_per_worker or 1)
        if not (0 < gpus <= 1 or (gpus > 1 and gpus.is_integer())):
            raise UserError(f"--gpus-per-worker must be a share of one GPU or a whole number of GPUs, not {gpus:g}")
        least = self.workers * max(gpus, 1)  # each replica needs a triplet
        if self.batch_size < least:
            each = f"{least:g} GPUs" if gpus > 1 else f"{self.workers} workers"
            raise UserError(
                f"--batch-size {self.batch_size} gives less than a triplet to each of {each}; give at least {least:g}"
            )

    def planned_steps(self, photos: int) -> int:
        """The number of steps of the run if each mining from `photos` training photos finds as many as it may keep."""
        return self.epochs * max(1, self.triplets(photos) // self.batch_size)

    def triplets(self, photos: int) -> int:
        """The most triplets of an epoch, mined from `photos` training photos."""
        return self.top or min(PER_PHOTO * photos, MOST_TRIPLETS)

    def lasting(self) -> dict[str, Any]:
        """The flags that decide what a run learns, by name. A run is resumed only with the same values."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in FREE}

    def mining(self, photos: int) -> Mining:
        """The settings of an epoch's mining from `photos` training photos."""
        return dataclasses.replace(self, top=self.triplets(photos))
