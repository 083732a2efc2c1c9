"""The one or two sets of descriptors that an evaluation measures: read from folders, or extracted first.

The descriptors of the database stay on disk and are loaded part by part. Those of the queries are in memory or, if
there are many queries, in a temporary file. A `DescriptorSet` also lists the whitenings that were applied to the
descriptors, and the photos that each was learned on: a whitening learned on the evaluated photos makes the figures too
high.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.data import manifest
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.task import RetrievalTask
from dim.extract import identity
from dim.extract.config import ExtractConfig, Split
from dim.extract.descriptors import Descriptors
from dim.extract.embedding import Embedding, NetworkEmbedding
from dim.io import files, seal
from dim.model import spec, whitening
from dim.model.spec import Spec
from dim.model.whitening import Whitening
from dim.search import descriptor_folder
from dim.search.database import temporary_file_of
from dim.search.descriptor_folder import DescriptorFolder, load_whitening
from dim.search.exact import Part

QUERIES_IN_MEMORY = 2**16  # more queries are kept in a temporary file


@dataclass(frozen=True)
class EvaluatedDatabase:
    """The descriptors that are searched: first those of the manifest's photos, then distractors. All stay on disk."""

    own: DescriptorFolder
    distractors: DescriptorFolder | None = None

    def __len__(self) -> int:
        return len(self.own) + (len(self.distractors) if self.distractors else 0)

    @property
    def rows(self) -> np.ndarray:
        """The manifest's row of each of the first columns, int64 (n,)."""
        return rows_of(self.own)

    @property
    def parts(self) -> list[Part]:
        """The descriptors of all columns, split into the parts that a search loads one by one."""
        more = self.distractors.parts if self.distractors else []
        return self.own.parts + [replace(part, start=part.start + len(self.own)) for part in more]

    @property
    def ids(self) -> pa.ChunkedArray:
        """The image_id of each column."""
        more = self.distractors.ids.chunks if self.distractors else []
        return pa.chunked_array(self.own.ids.chunks + more, pa.string())


def rows_of(folder: DescriptorFolder) -> np.ndarray:
    """The manifest's row of each descriptor of `folder`, which was read for a manifest."""
    if folder.rows is None:
        raise ValueError(f"{folder.folder!r} was read without a manifest")
    return folder.rows


@dataclass(frozen=True)
class DescriptorSet:
    """The descriptors of one folder, ready to be evaluated."""

    name: str  # the folder or the model that the user named
    folder: str
    embedding: Embedding  # includes the whitening that the evaluation applies
    queries: Descriptors  # in the order of the folder
    database: EvaluatedDatabase
    whitenings: list[dict[str, Any]]  # the result of `whitenings_of`

    @property
    def distractor_folder(self) -> str | None:
        """The folder of the distractors' descriptors, if there are distractors."""
        return self.database.distractors.folder if self.database.distractors else None


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
    ids = distractors.table["image_id"]
    for known in (task.database.table["image_id"], task.queries.table["image_id"]):
        if both := ids.filter(pc.is_in(ids, known.combine_chunks())).to_pylist():
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
    asked = _whitened(descriptor_folder.read(folder, None, task.queries, hashed=True), whitening)
    task.require_positive(rows_of(asked))
    own = _whitened(descriptor_folder.read(folder, None, task.database, hashed=True), whitening)
    more = None
    if distractors and beside:
        identity.require_equal(stored, folder, identity.of_folder(beside), beside)
        more = _whitened(descriptor_folder.read(beside, None, distractors), whitening)
    few = len(asked) <= QUERIES_IN_MEMORY
    vectors = np.concatenate(list(asked)) if few else temporary_file_of(asked, len(asked))
    queries = Descriptors(embedding, rows_of(asked), vectors)
    applied = whitenings_of(folder, whitening)
    return DescriptorSet(name, folder, embedding, queries, EvaluatedDatabase(own, more), applied)


def _whitened(folder: DescriptorFolder, whitening: Whitening | None) -> DescriptorFolder:
    """`folder` with `whitening`, if there is one, applied to each part that is loaded."""
    if whitening is None:
        return folder
    return replace(folder, parts=[replace(part, load=partial(_load, part.load, whitening)) for part in folder.parts])


def _load(load: Callable[[], np.ndarray], whitening: Whitening) -> np.ndarray:
    return whitening.apply(load())


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
