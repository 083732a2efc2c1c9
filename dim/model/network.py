"""The descriptor network, built in code: preprocessing → backbone → pooling → L2 → [PCA → L2].

The PCA layer is a Dense layer that starts from a fitted whitening (`Whitening.as_dense`) and is trained with the rest.
Its layers have fixed names: `preprocess`, the backbone's own, `pooling`, `l2`, `pca`, `l2_pca`.
"""

import contextlib
import random
from collections.abc import Iterator

from dim.errors import UserError
from dim.io import files, local_files
from dim.model import spec as specs
from dim.model import weights
from dim.model.backbones import BACKBONES
from dim.model.backend import keras
from dim.model.devices import POLICIES
from dim.model.layers import L2Normalisation, Preprocess
from dim.model.pooling import POOLINGS
from dim.model.spec import Source, Spec

# The fields of a spec that decide which weights there are. (The others change the input only.)
STRUCTURE = ("layer", "pooling", "dimension", "region_dimension")


@contextlib.contextmanager
def _policy(precision: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(POLICIES[precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def _same_random_weights() -> Iterator[None]:
    # An initialiser draws its seed from Python's generator. What is random elsewhere stays so.
    before = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(before)


def build(
    spec: Spec, precision: str = "float32", backbone_weights: str = "random", sha256: str | None = None
) -> keras.Model:
    """The network of `spec`; `backbone_weights` is a file, "imagenet" (a download) or "random", each time the same.
    The file must have this `sha256`, where one is known.

    uint8 (N, H, W, 3), RGB → float32 (N, D), L2-normalised. The backbone computes in `precision`, the rest in float32.
    Raises UserError where the weights cannot be had or don't fit.
    """
    images = keras.Input((None, None, 3), dtype="uint8", name="images")
    x = Preprocess(spec.preprocessing)(images)
    with _policy(precision), _same_random_weights():
        features = _backbone(spec, x, backbone_weights, sha256)
    regions = {"dimension": spec.region_dimension} if spec.region_dimension else {}
    x = POOLINGS[spec.pooling](name="pooling", **regions)(features)
    x = L2Normalisation(name="l2")(x)
    if spec.dimension is not None:
        x = keras.layers.Dense(spec.dimension, name="pca", dtype="float32", kernel_initializer="identity")(x)
        x = L2Normalisation(name="l2_pca")(x)
    return keras.Model(images, x, name="descriptor")


def _backbone(spec: Spec, x: keras.KerasTensor, wanted: str, sha256: str | None) -> keras.KerasTensor:
    known = BACKBONES[spec.backbone]
    constructor = getattr(keras.applications, known.constructor)
    options = {"include_preprocessing": False} if spec.backbone.startswith(("efficientnet", "convnext")) else {}
    imagenet = wanted == "imagenet"
    with weights.downloading(known.imagenet) if imagenet else contextlib.nullcontext():
        whole = constructor(include_top=False, weights="imagenet" if imagenet else None, input_tensor=x, **options)
    if spec.backbone.startswith("convnext"):
        # Keras numbers this one layer by how many of its kind the process has made.
        whole.layers[-1].name = "layer_normalization"
    pooled = whole.get_layer(spec.layer).output
    if wanted not in specs.WORDS:
        # An .npz names its arrays, so that only those needed must be there; an .h5 has all layers in their order.
        needed = keras.Model(x, pooled, name=spec.backbone) if wanted.endswith(".npz") else whole
        weights.load_into(needed, wanted, sha256)
    return pooled


def load(source: Source, precision: str = "float32") -> keras.Model:
    """The network of `source` with its weights. Raises UserError where they cannot be read, don't fit, or are no longer
    those that the source was found with.

    Where the spec differs from the one that was saved, layers that are in both keep their weights, a new PCA layer
    starts as the identity, and a new pooling as it does off the shelf.
    """
    spec, saved = source.spec, source.saved
    if saved is None:
        return build(spec, precision, source.weights, source.sha256)
    model = build(spec, precision)
    if all(getattr(spec, field) == getattr(saved, field) for field in STRUCTURE):
        weights.load_into(model, source.weights, source.sha256)
        return model
    trained = build(saved)
    weights.load_into(trained, source.weights, source.sha256)
    _copy(trained, model, saved, spec)
    return model


def _copy(trained: keras.Model, model: keras.Model, saved: Spec, spec: Spec) -> None:
    new = {"pca"} if saved.dimension is None else set()
    if (saved.pooling, saved.region_dimension) != (spec.pooling, spec.region_dimension):
        new.add("pooling")
    known = {layer.name: layer for layer in trained.layers}
    for layer in model.layers:
        if not layer.weights or layer.name in new:
            continue
        if layer.name not in known:
            raise UserError(f"the saved model ends at layer {saved.layer!r} and has no {layer.name!r}")
        shapes = [[tuple(weight.shape) for weight in one.weights] for one in (known[layer.name], layer)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"layer {layer.name!r} was saved for {saved.pooling} at {saved.layer!r} with weights of shapes "
                f"{shapes[0]}; {spec.pooling} at {spec.layer!r} needs {shapes[1]}"
            )
        layer.set_weights(known[layer.name].get_weights())


def save(model: keras.Model, spec: Spec, folder: str) -> None:
    """Writes the model folder: `model.weights.h5`, then `model.json`, which makes it one.

    What stood there before is no model from the start: no reader takes the new weights for the old model's.
    """
    files.make_folder(folder)
    local_files.sweep(folder)
    files.delete(files.join(folder, specs.SPEC_FILE))
    specs.write(spec, folder, weights.save(model, files.join(folder, specs.WEIGHTS_FILE)))


def part(model: keras.Model, first: str | None, last: str | None) -> keras.Model:
    """The part of `model` after the layer `first` (None: from the images) up to the layer `last` (None: to the end).

    It shares the model's layers and weights.
    """
    start = model.get_layer(first).output if first else model.input
    end = model.get_layer(last).output if last else model.output
    return keras.Model(start, end)
