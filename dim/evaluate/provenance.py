"""Where an evaluation's descriptors come from, so that its figure can be set beside another's."""

import contextlib
from typing import Any

from dim import checksum, files
from dim.errors import UserError
from dim.extract import identity
from dim.extract.identity import Embedding
from dim.model import spec, whitening
from dim.model.spec import Spec
from dim.model.whitening import Whitening


def whitenings(folder: str, applied: Whitening | None) -> list[dict[str, Any]]:
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
    if not folder or not files.exists(weights) or checksum.of_file(weights) != embedding.weights:
        return None
    return spec.read(folder)


def _of_file(uri: str | None, sha256: str) -> dict[str, Any]:
    with contextlib.suppress(UserError):  # it is gone, or no whitening any more
        if uri and (found := whitening.load(uri)).sha256 == sha256:
            return _about(found)
    return {"sha256": sha256, "learned_on": None}


def _about(found: Whitening) -> dict[str, Any]:
    return {"sha256": found.sha256, "kind": found.kind, "power": found.power, "learned_on": found.learned_on}
