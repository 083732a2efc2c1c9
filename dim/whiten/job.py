"""The job of whiten.py: fits a whitening, and writes it as a file or as part of a model.

With `--descriptors`, the job fits the whitening to stored descriptors. With `--model`, it first extracts descriptors,
or (with `--regions`) sums over regions of photos. Then it writes a copy of the model that contains the whitening.
"""

from dataclasses import replace
from typing import Any

import ray

from dim.app import cluster, output_folder, progress
from dim.data import manifest as manifests
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.extract import identity
from dim.extract.config import ExtractConfig
from dim.extract.embedder import Recipe
from dim.extract.job import extract
from dim.extract.resources import resolve_precision, resources
from dim.io import files, lease, local_copies, seal
from dim.model.spec import SPEC_FILE, Source, Spec
from dim.model.whitening import Whitening
from dim.whiten.config import POWER, WhitenConfig
from dim.whiten.distributed_sums import sum_moments, sum_pairs, sum_regions
from dim.whiten.fit import Moments, fit_learned, fit_pca


def whiten(config: WhitenConfig) -> dict[str, Any]:
    """Fits the whitening that `config` asks for, and writes it to `config.out`.

    Returns:
        The whitening's kind, number of training rows, dimension, power and explained variance, and the path written.

    Raises:
        UserError: The split has no row, or too few for the dimension; the folder lacks a row of the split; no label has
            two images (for learned whitening); or the model already has a PCA layer or (`--regions`) whitened regions.
    """
    chosen = manifests.read(config.manifest).select(config.split)
    if config.model is not None:
        return _into_model(config, config.model, chosen)
    return _into_file(config, str(config.descriptors), chosen)


def _into_file(config: WhitenConfig, folder: str, chosen: Manifest) -> dict[str, Any]:
    if files.is_folder(config.out):
        raise UserError(f"--out {config.out!r} is a folder; name a file in it, such as whitening.npz")
    embedding = identity.of_folder(folder).as_json()
    with cluster.joined():
        if not cluster.is_local():
            cluster.require_shared([folder])
        whitening = _of_descriptors(config, folder, chosen, embedding)
    files.make_folder(files.parent(config.out))
    local_copies.sweep(files.parent(config.out), files.name(config.out))
    whitening.save(config.out)
    return _summary(whitening) | {"whitening": config.out}


def _into_model(config: WhitenConfig, model: str, chosen: Manifest) -> dict[str, Any]:
    source = config.source(model)
    _require_unwhitened(config, source.spec)
    if files.exists(files.join(config.out, SPEC_FILE)) and output_folder.record_of(config.out) is None:
        raise UserError(f"--out {config.out!r} holds a model that whiten.py did not make; choose another")
    identity.fingerprint_photos(chosen)  # raises UserError if no photo of the manifest exists
    inputs = {"manifest": config.manifest, "model": model}
    with cluster.connected(), output_folder.opened(config.out, "whiten", config, inputs) as out:
        if config.regions:
            whitening = _of_regions(config, source, chosen)
        else:
            folder = files.join(config.out, "descriptors")
            settings = config.extraction_settings()
            extract(ExtractConfig(manifest=config.manifest, model=model, out=folder, split=config.split, **settings))
            # The extraction has read the model and the manifest again. Neither may have changed since the checks above.
            if identity.network_of(folder).weights != source.fingerprint():
                raise seal.changed(source.weights)
            if not manifests.read(config.manifest).select(config.split).table.equals(chosen.table):
                raise seal.changed(config.manifest)
            whitening = _of_descriptors(config, folder, chosen)
        # The task runs on this machine, because `out` may be a local folder. Only the task imports TensorFlow.
        write = ray.remote(_write_model).options(num_cpus=0, scheduling_strategy=cluster.on_this_node())
        with progress.step("writing the network"):
            ray.get(write.remote(source, whitening, config.regions, files.absolute(config.out), lease.claims()))
        return out.finish(_summary(whitening) | {"model": config.out})


def _require_unwhitened(config: WhitenConfig, spec: Spec) -> None:
    if config.regions and spec.pooling != "rmac":
        raise UserError(f"--regions is for pooling rmac, not {spec.pooling} as in {config.model!r}")
    if config.regions and spec.region_dimension is not None:
        raise UserError(f"the regions of {config.model!r} are whitened already; name a model whose regions are not")
    if spec.dimension is not None:
        raise UserError(f"{config.model!r} has a PCA layer already; name a model without one")
    _whitened_spec(spec, config.regions, config.dimension, None).checked(f"--dimension {config.dimension}")


def _whitened_spec(spec: Spec, regions: bool, dimension: int | None, about: dict[str, Any] | None) -> Spec:
    if regions:
        return replace(spec, region_dimension=dimension, region_whitening=about)
    return replace(spec, dimension=dimension, whitening=about)


def _of_regions(config: WhitenConfig, source: Source, chosen: Manifest) -> Whitening:
    precision = resolve_precision(config.precision, config.gpus_per_worker)
    recipe = Recipe(source, precision, scaled_decode=config.scaled_decode, limits=config.limits)
    machine = resources(config.workers, config.gpus_per_worker, config.batch_size, source.spec.image_size, len(chosen))
    return _pca(config, sum_regions(chosen, recipe, machine))


def _of_descriptors(
    config: WhitenConfig, folder: str, chosen: Manifest, embedding: dict[str, Any] | None = None
) -> Whitening:
    if config.kind == "pca":
        return _pca(config, sum_moments(folder, chosen), embedding)
    queries, differences = sum_pairs(folder, chosen, config.budget.share)
    return fit_learned(
        queries, differences, config.dimension, _learned_on(config), embedding, shrinkage=config.shrinkage
    )


def _pca(config: WhitenConfig, moments: Moments, embedding: dict[str, Any] | None = None) -> Whitening:
    power = POWER if config.power is None else config.power
    return fit_pca(moments, config.dimension, _learned_on(config), embedding, power=power)


def _learned_on(config: WhitenConfig) -> dict[str, Any]:
    return {"manifest": config.manifest, "split": config.split}


def _write_model(
    source: Source, whitening: Whitening, regions: bool, folder: str, claims: tuple[lease.Claim, ...]
) -> None:
    from dim.model import devices, network  # noqa: PLC0415  (the driver does not import TensorFlow)

    devices.use_assigned_gpus()
    about = {"kind": whitening.kind, "power": whitening.power, "learned_on": whitening.learned_on}
    spec = _whitened_spec(source.spec, regions, len(whitening.projection), about)
    model = network.load(replace(source, spec=spec))
    model.get_layer("pooling" if regions else "pca").set_weights(whitening.as_dense())
    with lease.under(claims):
        network.save(model, spec, folder, source.training)


def _summary(whitening: Whitening) -> dict[str, Any]:
    return {
        "kind": whitening.kind,
        "rows": whitening.learned_on["rows"],
        "dimension": len(whitening.projection),
        "power": whitening.power,
        "explained_variance": round(whitening.explained_variance, 6),
    }
