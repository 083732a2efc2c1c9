"""Where an evaluation's descriptors come from, so that its figure can be set beside another's.

The descriptors that are searched: those of the manifest in memory, those of distractors streamed.

The one or two sets of descriptors that an evaluation measures, each with its distractors.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from dim.data import manifest
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.protocols import Task
from dim.extract import descriptors, identity
from dim.extract.config import ExtractConfig, Extraction, Split
from dim.extract.descriptors import Descriptors
from dim.extract.identity import Embedding
from dim.io import files, seal
from dim.model import spec, whitening
from dim.model.spec import Spec
from dim.model.whitening import Whitening
from dim.search import descriptor_folder
from dim.search.database import parts_of
from dim.search.descriptor_folder import DescriptorFolder, checked_and_whitened, load_whitening
from dim.search.exact import Part


def whitenings_of(folder: str, applied: Whitening | None) -> list[dict[str, Any]]:
    """Each whitening that the descriptors of `folder` went through, in order: applied `by` what, and `learned_on` what.

    "regions" is that of R-MAC's regions, "model" the network's PCA layer. `applied` is what the evaluation
    itself applies. `learned_on` is None where the model or the file that would say so is no longer what made the
    descriptors. Raises UserError where the folder's run.json doesn't name what it was made from.
    """
    embedding = identity.of_folder(folder)
    inputs = identity.inputs_of(folder)
    steps = []
    if model := _model(inputs.get("model"), embedding):
        if model.region_whitening and embedding.pooling == "rmac":
            steps.append({"by": "regions", **model.region_whitening})
        if model.whitening:
            steps.append({"by": "model", **model.whitening})
    if embedding.whitening:
        steps.append({"by": "extract", **_of_file(inputs.get("whitening"), embedding.whitening)})
    if applied:
        steps.append({"by": "evaluate", **_about(applied)})
    return steps


def _model(folder: str | None, embedding: Embedding) -> Spec | None:
    weights = files.join(folder or "", spec.WEIGHTS_FILE)
    if not folder or not files.exists(weights) or seal.sha256_of_file(weights) != embedding.weights:
        return None
    return spec.read(folder)


def _of_file(uri: str | None, sha256: str) -> dict[str, Any]:
    with contextlib.suppress(UserError):  # it is gone, or no whitening any more
        if uri and (found := whitening.load(uri)).sha256 == sha256:
            return _about(found)
    return {"sha256": sha256, "learned_on": None}


def _about(found: Whitening) -> dict[str, Any]:
    return {"sha256": found.sha256, "kind": found.kind, "power": found.power, "learned_on": found.learned_on}


@dataclass(frozen=True)
class EvaluatedDatabase:
    """Rows of the database by column: first those of the manifest (`rows` are their rows there), then distractors."""

    rows: np.ndarray
    vectors: np.ndarray
    distractors: DescriptorFolder | None = None

    def __len__(self) -> int:
        return len(self.rows) + (len(self.distractors) if self.distractors else 0)

    @property
    def parts(self) -> list[Part]:
        """The descriptors of all columns."""
        more = self.distractors.parts if self.distractors else []
        return parts_of(self.vectors) + [replace(part, start=part.start + len(self.rows)) for part in more]

    def ids(self, manifest: Manifest) -> np.ndarray:
        """The image_id of each column."""
        own = manifest.image_ids[self.rows]
        return np.concatenate([own, self.distractors.ids.to_numpy()]) if self.distractors else own


def read_database(folder: str, manifest: Manifest, whitening: Whitening | None) -> Descriptors:
    """The descriptors of the manifest's rows that could be decoded, whitened where asked.

    Raises UserError as `descriptors.read` does, and where a descriptor is not a unit vector.
    """
    found = descriptors.read(folder, manifest)
    return Descriptors(found.embedding, found.rows, checked_and_whitened(found.vectors, whitening, folder))


def read_distractors(folder: str, manifest: Manifest, whitening: str | None) -> DescriptorFolder:
    """The distractors of `manifest`, their vectors left on disk. Raises UserError where `folder` lacks one of them."""
    found = descriptor_folder.read(folder, whitening, manifest.image_ids)
    if missing := {*manifest.image_ids} - {*found.ids.to_pylist()} - found.errors.keys():
        raise UserError(
            f"{folder!r} lacks {len(missing)} of the distractors of {manifest.uri!r}, such as {min(missing)!r}"
        )
    return found


@dataclass(frozen=True)
class DescriptorSet:
    """`name` is what the user gave; `embedding` is that of `folder`, with the whitening that the evaluation applies;
    `whitenings` are those of `provenance`.
    """

    name: str
    folder: str
    embedding: Embedding
    queries: Descriptors
    database: EvaluatedDatabase
    whitenings: list[dict[str, Any]]


def read(config: EvaluateConfig, task: Task) -> list[DescriptorSet]:
    """Reads, or first makes, what `config` names.

    Raises UserError where flags or embeddings don't fit each other, or a folder lacks descriptors that `task` needs.
    """
    if not 1 <= len(config.descriptors) + len(config.model) <= 2:
        raise UserError("give --descriptors DIR or --model X once, or twice to compare two")
    if len(config.distractor_descriptors) != (len(config.descriptors) if config.distractors else 0):
        raise UserError("--distractors FILE needs one --distractor-descriptors DIR for each --descriptors DIR")
    distractors = _distractors(config, task)
    found = []
    for name, folder, beside in _folders(config):
        stored = embedding = identity.of_folder(folder)
        whitening = None
        if config.whitening:
            embedding, whitening = load_whitening(config.whitening, stored, folder)
        queries = read_database(folder, task.queries, whitening)
        task.require_positive(queries.rows)
        searched = read_database(folder, task.database, whitening)
        more = None
        if distractors and beside:
            identity.require_equal(stored, folder, identity.of_folder(beside), beside)
            more = read_distractors(beside, distractors, config.whitening)
            identity.require_equal(embedding, folder, more.embedding, beside)  # the file was read a second time
        searched_in = EvaluatedDatabase(searched.rows, searched.vectors, more)
        whitenings = whitenings_of(folder, whitening)
        found.append(DescriptorSet(name, folder, embedding, queries, searched_in, whitenings))
    return found


def _distractors(config: EvaluateConfig, task: Task) -> Manifest | None:
    if config.distractors is None:
        return None
    distractors = manifest.read(config.distractors)
    if config.root:
        identity.require_under(config.root, distractors)
    if both := {*distractors.image_ids} & {*task.database.image_ids, *task.queries.image_ids}:
        raise UserError(f"{config.distractors!r} and {config.manifest!r} both have the image_id {min(both)!r}")
    return distractors


def _folders(config: EvaluateConfig) -> Iterator[tuple[str, str, str | None]]:
    """The name, the descriptors and the distractors' descriptors of each source."""
    for number, folder in enumerate(config.descriptors):
        yield folder, folder, config.distractor_descriptors[number] if config.distractors else None
    split = None if config.query_split else config.split
    for number, model in enumerate(config.model, start=1):
        folder, beside = (files.join(config.out, f"{kind}-{number}") for kind in ("descriptors", "distractors"))
        _extract(config, model, config.manifest, folder, split)
        if config.distractors:
            _extract(config, model, config.distractors, beside, None)
        yield model, folder, beside if config.distractors else None


def _extract(config: EvaluateConfig, model: str, photos: str, out: str, split: Split | None) -> None:
    from dim.extract.job import extract  # noqa: PLC0415  (descriptors at hand need no Ray)

    how = {field.name: getattr(config, field.name) for field in fields(Extraction)}
    extract(ExtractConfig(manifest=photos, model=model, out=out, split=split, **how))
