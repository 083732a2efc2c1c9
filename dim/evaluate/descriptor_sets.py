"""The one or two sets of descriptors that an evaluation measures: read from folders, or extracted first.

A `DescriptorSet` holds the descriptors of the queries and of the database in memory. The descriptors of distractors
stay on disk and are loaded part by part. The set also lists the whitenings that were applied to the descriptors, and
the photos that each was learned on: a whitening learned on the evaluated photos makes the figures too high.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dim.data import manifest
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.protocols import RetrievalTask
from dim.extract import descriptors, identity
from dim.extract.config import ExtractConfig, Split
from dim.extract.descriptors import Descriptors
from dim.extract.embedding import Embedding, NetworkEmbedding
from dim.io import files, seal
from dim.model import spec, whitening
from dim.model.spec import Spec
from dim.model.whitening import Whitening
from dim.search import descriptor_folder
from dim.search.database import parts_of
from dim.search.descriptor_folder import DescriptorFolder, checked_and_whitened, load_whitening
from dim.search.exact import Part


@dataclass(frozen=True)
class EvaluatedDatabase:
    """The descriptors that are searched: first those of the manifest's photos, then distractors, which stay on disk."""

    rows: np.ndarray  # int (n,): the manifest's rows that the first n columns belong to
    vectors: np.ndarray  # float32 (n, D): the descriptors of `rows`
    distractors: DescriptorFolder | None = None

    def __len__(self) -> int:
        return len(self.rows) + (len(self.distractors) if self.distractors else 0)

    @property
    def parts(self) -> list[Part]:
        """The descriptors of all columns, split into the parts that a search loads one by one."""
        more = self.distractors.parts if self.distractors else []
        return parts_of(self.vectors) + [replace(part, start=part.start + len(self.rows)) for part in more]

    def ids(self, manifest: Manifest) -> np.ndarray:
        """The image_id of each column, given the database's manifest."""
        own = manifest.image_ids[self.rows]
        return np.concatenate([own, self.distractors.ids.to_numpy()]) if self.distractors else own


@dataclass(frozen=True)
class DescriptorSet:
    """The descriptors of one folder, ready to be evaluated."""

    name: str  # the folder or the model that the user named
    folder: str
    embedding: Embedding  # includes the whitening that the evaluation applies
    queries: Descriptors
    database: EvaluatedDatabase
    whitenings: list[dict[str, Any]]  # the result of `whitenings_of`


def read(config: EvaluateConfig, task: RetrievalTask) -> list[DescriptorSet]:
    """Reads the descriptors that `config` names. If it names a --model, they are extracted first.

    Raises UserError if flags or embeddings contradict each other, or a folder lacks descriptors that `task` needs.
    """
    if not 1 <= len(config.descriptors) + len(config.model) <= 2:
        raise UserError("give --descriptors DIR or --model X once, or twice to compare two")
    if len(config.distractor_descriptors) != (len(config.descriptors) if config.distractors else 0):
        raise UserError("--distractors FILE needs one --distractor-descriptors DIR for each --descriptors DIR")
    distractors = _distractors(config, task)
    return [_read_set(config, task, distractors, named) for named in _folders(config)]


def _distractors(config: EvaluateConfig, task: RetrievalTask) -> Manifest | None:
    if config.distractors is None:
        return None
    distractors = manifest.read(config.distractors)
    if config.root:
        identity.require_under(config.root, distractors)
    if both := {*distractors.image_ids} & {*task.database.image_ids, *task.queries.image_ids}:
        raise UserError(f"{config.distractors!r} and {config.manifest!r} both have the image_id {min(both)!r}")
    return distractors


def _folders(config: EvaluateConfig) -> Iterator[tuple[str, str, str | None]]:
    """Extracts descriptors for each --model. Yields each set's name, descriptors' folder and distractors' folder."""
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
    from dim.extract.job import extract  # noqa: PLC0415  (starts Ray, which finished descriptors don't need)

    extract(ExtractConfig(manifest=photos, model=model, out=out, split=split, **config.extraction_settings()))


def _read_set(
    config: EvaluateConfig, task: RetrievalTask, distractors: Manifest | None, named: tuple[str, str, str | None]
) -> DescriptorSet:
    """Reads the set `named`, an item of `_folders`. `distractors` is the manifest of the distractors."""
    name, folder, beside = named
    stored = embedding = identity.of_folder(folder)
    whitening = None
    if config.whitening:
        embedding, whitening = load_whitening(config.whitening, stored, folder)
    queries = _read_rows(folder, task.queries, whitening)
    task.require_positive(queries.rows)
    own = _read_rows(folder, task.database, whitening)
    more = None
    if distractors and beside:
        identity.require_equal(stored, folder, identity.of_folder(beside), beside)
        more = descriptor_folder.read(beside, config.whitening, distractors)  # they stay on disk
        identity.require_equal(embedding, folder, more.embedding, beside)  # unequal if the whitening file changed
    database = EvaluatedDatabase(own.rows, own.vectors, more)
    return DescriptorSet(name, folder, embedding, queries, database, whitenings_of(folder, whitening))


def _read_rows(folder: str, manifest: Manifest, whitening: Whitening | None) -> Descriptors:
    """Reads the descriptors of those rows of `manifest` that could be decoded, and applies `whitening` if given.

    Raises UserError if `folder` lacks a row or a descriptor is not a unit vector.
    """
    found = descriptors.read(folder, manifest)
    return Descriptors(found.embedding, found.rows, checked_and_whitened(found.vectors, whitening, folder))


def whitenings_of(folder: str, applied: Whitening | None) -> list[dict[str, Any]]:
    """Lists the whitenings applied to the descriptors of `folder`, in order. If `applied` is given, it is the last.

    The key `by` is "regions" for the whitening of R-MAC's regions and "model" for the network's PCA layer. Otherwise it
    names the job that applied the whitening, "extract" or "evaluate". `learned_on` is None if the whitening's file is
    gone or has changed. If the model is gone or has changed, its whitenings are left out. Raises UserError if the
    folder's run.json doesn't name what the descriptors were made from.
    """
    embedding = identity.of_folder(folder)
    inputs = identity.inputs_of(folder)
    steps = []
    if isinstance(embedding, NetworkEmbedding) and (model := _model(inputs.get("model"), embedding)):
        if model.region_whitening and embedding.pooling == "rmac":
            steps.append({"by": "regions", **model.region_whitening})
        if model.whitening:
            steps.append({"by": "model", **model.whitening})
    if embedding.whitening:
        steps.append({"by": "extract", **_of_file(inputs.get("whitening"), embedding.whitening)})
    if applied:
        steps.append({"by": "evaluate", **_about(applied)})
    return steps


def _model(folder: str | None, embedding: NetworkEmbedding) -> Spec | None:
    """The spec of the model in `folder`, None unless it still has the weights of `embedding`."""
    weights = files.join(folder or "", spec.WEIGHTS_FILE)
    if not folder or not files.exists(weights) or seal.sha256_of_file(weights) != embedding.weights:
        return None
    return spec.read(folder)


def _of_file(uri: str | None, sha256: str) -> dict[str, Any]:
    with contextlib.suppress(UserError):  # the file is gone or no longer a whitening
        if uri and (found := whitening.load(uri)).sha256 == sha256:
            return _about(found)
    return {"sha256": sha256, "learned_on": None}


def _about(found: Whitening) -> dict[str, Any]:
    return {"sha256": found.sha256, "kind": found.kind, "power": found.power, "learned_on": found.learned_on}
