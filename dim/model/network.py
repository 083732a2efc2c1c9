"""Builds, loads, saves and cuts the descriptor network: preprocessing → backbone → pooling → L2 → [PCA → L2].

The PCA layer is a Dense layer. Its weights come from a fitted whitening (`Whitening.as_dense`), or from training.
Layer names are fixed: `preprocess`, the names that keras.applications gives to the backbone's layers, `pooling`, `l2`,
`pca`, `l2_pca`. Loading, training and export find layers by these names.
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

from dim.errors import UserError
from dim.io import files, local_copies
from dim.model import spec as specs
from dim.model import weights
from dim.model.backbones import BACKBONES
from dim.model.backend import keras
from dim.model.devices import POLICIES
from dim.model.layers import L2Normalisation, Preprocess
from dim.model.pooling import POOLINGS
from dim.model.spec import Source, Spec

# For a given backbone, these fields of a spec decide which weights the network has.
STRUCTURE = ("layer", "pooling", "dimension", "region_dimension")


def build(
    spec: Spec, precision: str = "float32", backbone_weights: str = "random", sha256: str | None = None
) -> keras.Model:
    """Builds the network of `spec`.

    Args:
        spec: The structure and the input of the network.
        precision: The precision of the backbone, "float32", "bfloat16" or "float16". Other layers compute in float32.
        backbone_weights: A .npz or .h5 file, "imagenet" (a download), or "random" (the same values in each call).
        sha256: The expected hash of the weights file; None accepts any file.

    Returns:
        A model from uint8 RGB (N, H, W, 3) to L2-normalised float32 (N, D).

    Raises:
        UserError: The weights cannot be downloaded or read, do not fit, or have another hash.
    """
    images = keras.Input((None, None, 3), dtype="uint8", name="images")
    x = Preprocess(spec.preprocessing)(images)
    with _settings(precision):
        maps = _backbone(spec, x, backbone_weights, sha256)
    regions = {"dimension": spec.region_dimension} if spec.region_dimension else {}
    x = POOLINGS[spec.pooling](name="pooling", **regions)(maps)
    x = L2Normalisation(name="l2")(x)
    if spec.dimension is not None:
        x = keras.layers.Dense(spec.dimension, name="pca", dtype="float32", kernel_initializer="identity")(x)
        x = L2Normalisation(name="l2_pca")(x)
    return keras.Model(images, x, name="descriptor")


def _backbone(spec: Spec, x: keras.KerasTensor, wanted: str, sha256: str | None) -> keras.KerasTensor:
    """Returns the activation maps of the layer that is pooled, for the preprocessed images `x`."""
    known = BACKBONES[spec.backbone]
    constructor = getattr(keras.applications, known.constructor)
    options = {"include_preprocessing": False} if spec.backbone.startswith(("efficientnet", "convnext")) else {}
    imagenet = wanted == "imagenet"
    with weights.downloading(known.imagenet) if imagenet else contextlib.nullcontext():
        whole = constructor(include_top=False, weights="imagenet" if imagenet else None, input_tensor=x, **options)
    if spec.backbone.startswith("convnext"):
        # Keras appends a number to this layer's name. The number depends on the layers that this process built before.
        whole.layers[-1].name = "layer_normalization"
    maps = whole.get_layer(spec.layer).output
    if wanted not in specs.NAMED_WEIGHTS:
        # The arrays of an .npz have names, so unused layers may be absent. An .h5 must have all layers in order.
        needed = keras.Model(x, maps, name=spec.backbone) if wanted.endswith(".npz") else whole
        weights.load_into(needed, wanted, sha256)
    return maps


@contextlib.contextmanager
def _settings(precision: str) -> Iterator[None]:
    """Sets Keras's precision and seeds Python's random generator. (Keras's initialisers draw their seeds from it.)"""
    policy, state = keras.config.dtype_policy(), random.getstate()
    keras.config.set_dtype_policy(POLICIES[precision])
    random.seed(0)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        random.setstate(state)


def load(source: Source, precision: str = "float32") -> keras.Model:
    """Builds the network of `source` and loads its weights. See `build` for `precision`.

    If the spec differs from the saved one, layers that are in both networks get their saved weights. A new PCA layer
    starts as the identity, and a new pooling layer has default weights. Raises UserError if the weights cannot be read,
    do not fit, or have changed since `resolve` hashed them.
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
    _copy_weights(trained, model, saved, spec)
    return model


def _copy_weights(trained: keras.Model, model: keras.Model, saved: Spec, spec: Spec) -> None:
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


def save(model: keras.Model, spec: Spec, folder: str, training: dict[str, Any] | None = None) -> None:
    """Writes a model folder: `model.weights.h5`, then `model.json`, which has `training` (see `Source`).

    An earlier `model.json` is deleted first. Otherwise a reader could combine it with the new weights, or mistake the
    folder of an interrupted job for a model.
    """
    files.make_folder(folder)
    local_copies.sweep(folder)
    files.delete(files.join(folder, specs.SPEC_FILE))
    specs.write(spec, folder, weights.save(model, files.join(folder, specs.WEIGHTS_FILE)), training)


def part(model: keras.Model, first: str | None, last: str | None) -> keras.Model:
    """Returns the layers of `model` after `first`, up to and including `last`, as a model that shares their weights.

    If `first` is None, the part begins with the images. If `last` is None, the part goes to the end of `model`.
    """
    start = model.get_layer(first).output if first else model.input
    end = model.get_layer(last).output if last else model.output
    return keras.Model(start, end)
