"""The two parts of a descriptor's identity: the embedding of its store, and the content fingerprint of its row.

The `Embedding`, an entry of run.json, identifies the network and all settings that a descriptor depends on. Descriptors
may be compared only if their embeddings are equal. The content fingerprint (`fingerprint_photos`), a column of the
store, identifies the photo of a row; a changed photo is embedded again. Neither part depends on labels or splits.
"""

import functools
import hashlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dim.app import output_folder, progress, tasks
from dim.data.manifest import Manifest
from dim.errors import UserError, quoted
from dim.extract import photo_files
from dim.extract.embedder import Recipe
from dim.extract.embedding import IGNORED, Embedding, NetworkEmbedding, from_json
from dim.io import files


def holds_descriptors(record: dict[str, Any] | None) -> bool:
    """Whether the folder with the run.json `record` holds descriptors: of extract.py, or imported by import.py."""
    if record is None or record["job"] not in ("extract", "import"):
        return False
    return record["job"] == "extract" or record.get("embedding") is not None


def of_folder(folder: str) -> Embedding:
    """The embedding of the descriptors or the index in `folder`, from its run.json.

    Raises UserError if there is no run.json, it holds no embedding, or the job that writes the folder has not finished.
    """
    record = output_folder.finished_record(folder)
    if record is None:
        raise UserError(
            f"{folder!r} is not an output folder of dim: it has no {output_folder.RECORD}; make it with extract.py"
        )
    return of_record(record, folder)


def network_of(folder: str) -> NetworkEmbedding:
    """Does what `of_folder` does. Also raises UserError if extract.py did not make the descriptors."""
    found = of_folder(folder)
    if not isinstance(found, NetworkEmbedding):
        raise UserError(f"{folder!r} holds descriptors made elsewhere, by {found.network!r}; name those of extract.py")
    return found


def of_record(record: dict[str, Any], folder: str) -> Embedding:
    """The embedding in `record`, the run.json of `folder`."""
    return from_json(record.get("embedding"), repr(files.join(folder, output_folder.RECORD)))


def inputs_of(folder: str) -> dict[str, str | None]:
    """The files from which the descriptors or the index in `folder` were made, by kind (model, manifest …).

    The folder's run.json lists them. Raises UserError if it does not.
    """
    inputs = (output_folder.record_of(folder) or {}).get("inputs")
    if not isinstance(inputs, dict) or not all(isinstance(uri, str | None) for uri in inputs.values()):
        where = files.join(folder, output_folder.RECORD)
        raise UserError(f"{where!r}: its inputs are {quoted(inputs)}, not names of files; make this folder again")
    return inputs


def origins_of(folder: str) -> dict[str, str | None]:
    """The same; for an index, also the files from which its descriptors were made."""
    own = inputs_of(folder)
    if not (descriptors := own.get("descriptors")):
        return own
    return inputs_of(descriptors) | {name: uri for name, uri in own.items() if uri is not None}


def embedding_of(recipe: Recipe) -> NetworkEmbedding:
    """The identity of `recipe`'s descriptors. Raises UserError if its whitening was fitted on another embedding."""
    known = recipe.source.spec
    embedding = NetworkEmbedding(
        backbone=known.backbone,
        layer=known.layer,
        pooling=known.pooling,
        weights=recipe.source.fingerprint(),
        preprocessing=known.preprocessing,
        image_size=known.image_size,
        resize=known.resize,
        scales=recipe.scales,
        scales_mean=recipe.scales_mean if len(recipe.scales) > 1 else None,
        whitening=None,
        precision=recipe.precision,
        scaled_decode=recipe.scaled_decode,
    )
    if recipe.whitening is None:
        return embedding
    fitted, file = recipe.whitening.embedding, str(recipe.whitening.uri)
    if fitted is not None:
        require_equal(from_json(fitted, repr(file)), file, embedding, "this extraction")
    return embedding.whitened(recipe.whitening.sha256)


def require_equal(one: Embedding, where_one: str, other: Embedding, where_other: str) -> None:
    """Raises UserError unless both embeddings are equal; the message names each field that differs."""
    if one == other:
        return
    values, others = (vars(one), vars(other)) if type(one) is type(other) else (_network(one), _network(other))
    differing = [f"{name} {value!r} ≠ {others[name]!r}" for name, value in values.items() if value != others[name]]
    what_to_do = "name descriptors of one network"
    if isinstance(one, NetworkEmbedding) and isinstance(other, NetworkEmbedding):
        what_to_do = "extract one of them again, or use another output folder"
        if one.profiles != other.profiles:
            what_to_do = _renewal(where_one if one.profiles == IGNORED else where_other)
    raise UserError(
        f"{where_one!r} and {where_other!r} were made by different embeddings: {'; '.join(differing)}; {what_to_do}"
    )


def _network(embedding: Embedding) -> dict[str, str]:
    return {"network": embedding.network}


def _renewal(where: str) -> str:
    """How to renew the output `where`, which was made before dim applied colour profiles (identity version 1)."""
    record = output_folder.record_of(where) if files.is_folder(where) else None
    job = record["job"] if record else "whiten" if where.endswith(".npz") else "extract"
    steps = {
        "extract": "run the same extract.py with another --out",
        "index": "run the same extract.py again with another --out, and index.py on its output",
        "whiten": "run the same extract.py again with another --out, and whiten.py on its output",
    }
    return f"{where!r} was made before dim applied colour profiles: {steps.get(job, steps['extract'])}"


@dataclass(frozen=True)
class Contents:
    """The content fingerprint of each row of a manifest, and whether the row's file is present, bool (N,)."""

    contents: pa.ChunkedArray
    present: np.ndarray


def fingerprint_photos(manifest: Manifest) -> Contents:
    """Fingerprints each row by the first half of the sha256 of its path, size, modification time and box.

    The size and the time of a tar's member are those of the tar. The work is divided by `tasks.spread`. Raises
    UserError if none of the photos exists, for example because the manifest is in the wrong folder.
    """
    rows = pa.table({"path": manifest.table["path"], "uri": manifest.uris, "box": manifest.box_lists})
    units = photo_files.units(manifest.uris)
    found = tasks.spread(_fingerprints, [photo_files.chosen(rows, unit) for unit in units], light=True)
    with progress.step(f"looking for the files of {len(manifest):,} photos"):
        parts, masks = zip(*tasks.in_order(found), strict=True)
    contents, present = pa.chunked_array(parts), np.concatenate(masks)
    positions = np.concatenate(units)
    if (np.diff(positions) < 0).any():  # units of a store's objects are in the order of folders
        order = np.argsort(positions)
        contents, present = contents.take(pa.array(order)), present[order]
    if not present.any():
        first = manifest.uris[0].as_py()
        windows = " and use / where Windows uses \\" if "\\" in first else ""
        raise UserError(
            f"none of the {len(manifest)} photos of {manifest.uri!r} exists, the first at {first!r}; "
            f"paths are relative to the manifest's folder{windows}"
        )
    return Contents(contents, present)


def _fingerprints(rows: pa.Table) -> tuple[pa.Array, np.ndarray]:
    """The contents and the presence of `rows` (path, uri, box)."""
    states = photo_files.states(rows["uri"])
    # The path is hashed as it is in the manifest, so a folder that moves with its manifest keeps its fingerprints.
    keys = (
        f"{path}\t{state.size}\t{state.mtime_ns}\t{box and tuple(box)}"
        for path, box, state in zip(rows["path"].to_pylist(), rows["box"].to_pylist(), states, strict=True)
    )
    contents = pa.array([hashlib.sha256(key.encode()).hexdigest()[:32] for key in keys], pa.string())
    return contents, np.array([state.is_file for state in states], dtype=bool)


def require_under(root: str, manifest: Manifest) -> None:
    """Raises UserError unless each photo is in the folder `root` or below it. Links and `..` are resolved first."""
    top = f"{photo_files.resolved(root).rstrip('/')}/"
    units = photo_files.units(manifest.uris)
    rows = pa.table({"uri": manifest.uris})
    outside = tasks.spread(_outside, [photo_files.chosen(rows, unit) for unit in units], (top,), light=True)
    found = [units[number][row].as_py() for number, row in outside if row is not None]
    if found:
        image_id, uri = manifest.ids[min(found)].as_py(), manifest.uris[min(found)].as_py()
        raise UserError(f"image_id {image_id!r} of {manifest.uri!r} is at {uri!r}, outside --root {root!r}")


def _outside(rows: pa.Table, top: str) -> int | None:
    """The first of `rows` whose `uri` does not begin with the folder `top` once it is resolved; None if all do."""
    real = functools.cache(os.path.realpath)  # a folder holds many photos
    places = (photo_files.resolved(uri, real) for uri in rows["uri"].to_pylist())
    return next((row for row, place in enumerate(places) if not place.startswith(top)), None)
