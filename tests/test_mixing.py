"""The mixing matrix: what one embedding made is refused beside what another made, whichever field differs, by each job
that brings the two together; and nothing is written.
"""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dim.audit.config import AuditConfig
from dim.audit.job import audit
from dim.errors import UserError
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import evaluate
from dim.export.config import ExportConfig
from dim.export.job import LAYOUTS, export
from dim.extract import identity
from dim.extract.config import ExtractConfig
from dim.extract.embedder import Recipe
from dim.extract.embedding import IGNORED, NetworkEmbedding
from dim.extract.identity import embedding_of
from dim.extract.job import extract
from dim.group.config import GroupConfig
from dim.group.job import group
from dim.io import files
from dim.mine.config import MineConfig
from dim.mine.job import mine_folder
from dim.model import spec
from dim.model.whitening import Whitening
from dim.search.build_index import build
from dim.search.config import IndexConfig, SearchConfig
from dim.search.job import search
from dim.whiten.config import WhitenConfig
from dim.whiten.job import whiten

pytestmark = pytest.mark.usefixtures("ray_session")

OTHER = {
    "backbone": "vgg19",
    "layer": "block5_pool",
    "pooling": "mac",
    "weights": "1" * 64,
    "preprocessing": "unit",
    "image_size": 320,
    "resize": "long-side",
    "scales": (1.0, 0.5),
    "scales_mean": "gem",
    "whitening": "2" * 64,
    "precision": "bfloat16",
    "scaled_decode": True,
    "profiles": IGNORED,
}
IDS = [f"photo {number}" for number in range(6)]
VECTORS = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


class Mixed:
    """Folders of two embeddings that differ in one field, and one with a shard of each."""

    def __init__(self, field, write_manifest, write_descriptors, folder):
        labels = ["a", "b"] * 3
        self.manifest = write_manifest(image_id=IDS, label=labels, split=["train"] * 6)
        self.more = write_manifest("more.csv", image_id=["more"])
        self.one = write_descriptors(IDS, VECTORS, name="one")
        change = {field: OTHER[field]}
        self.other = write_descriptors(IDS, VECTORS, name="other", **change)
        self.distractors = write_descriptors(["more"], VECTORS[:1], name="distractors", **change)
        self.both = str(folder / "both")
        shutil.copytree(self.one, self.both)
        for path in sorted(Path(self.other).glob("part-*"))[:2]:  # a shard and its statistics
            shutil.copy2(path, self.both)
        self.whitening = str(folder / "whitening.npz")
        embedding = dataclasses.replace(identity.of_folder(self.one), **change).as_json()
        ones = np.ones(4, np.float32)
        Whitening(0 * ones, np.diag(ones), ones, 0.5, "pca", {}, embedding).save(self.whitening)
        self.out = str(folder / "out")


JOBS = {
    "evaluate": lambda m: evaluate(EvaluateConfig(manifest=m.manifest, descriptors=(m.both,), out=m.out)),
    "evaluate, whitened": lambda m: evaluate(
        EvaluateConfig(manifest=m.manifest, descriptors=(m.one,), whitening=m.whitening, out=m.out)
    ),
    "evaluate, distractors": lambda m: evaluate(
        EvaluateConfig(
            manifest=m.manifest,
            descriptors=(m.one,),
            distractors=m.more,
            distractor_descriptors=(m.distractors,),
            out=m.out,
        )
    ),
    "search": lambda m: search(SearchConfig(index=m.one, queries=m.other, out=m.out)),
    "search, one folder": lambda m: search(SearchConfig(index=m.both, queries=m.one, out=m.out)),
    "search, whitened": lambda m: search(SearchConfig(index=m.one, queries=m.one, whitening=m.whitening, out=m.out)),
    "index": lambda m: build(IndexConfig(descriptors=m.both, out=m.out)),
    "index, whitened": lambda m: build(IndexConfig(descriptors=m.one, whitening=m.whitening, out=m.out)),
    "audit": lambda m: audit(AuditConfig(manifest=m.manifest, descriptors=m.both, out=m.out)),
    "audit, whitened": lambda m: audit(
        AuditConfig(manifest=m.manifest, descriptors=m.one, whitening=m.whitening, out=m.out)
    ),
    "group": lambda m: group(GroupConfig(manifest=m.manifest, descriptors=m.both, out=m.out)),
    "group, whitened": lambda m: group(
        GroupConfig(manifest=m.manifest, descriptors=m.one, whitening=m.whitening, out=m.out)
    ),
    "mine": lambda m: mine_folder(MineConfig(manifest=m.manifest, descriptors=m.both, out=m.out)),
    "whiten, pca": lambda m: whiten(WhitenConfig(manifest=m.manifest, descriptors=m.both, out=m.out)),
    "whiten, learned": lambda m: whiten(
        WhitenConfig(manifest=m.manifest, descriptors=m.both, out=m.out, kind="learned")
    ),
} | {
    f"export, {layout}": lambda m, layout=layout: export(ExportConfig(descriptors=m.both, out=m.out, format=layout))
    for layout in LAYOUTS
}


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(NetworkEmbedding)])
def test_refused(write_manifest, write_descriptors, tmp_path, field, job):
    mixed = Mixed(field, write_manifest, write_descriptors, tmp_path)
    with pytest.raises(UserError, match=f"were made by different embeddings: {field} ") as error:
        JOBS[job](mixed)
    assert "\n" not in str(error.value)
    assert not Path(mixed.out).exists()


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(NetworkEmbedding)])
def test_an_extraction_goes_on_with_no_other_embeddings_rows(write_manifest, write_descriptors, tmp_path, field):
    for image_id in IDS:
        Image.new("RGB", (40, 40)).save(tmp_path / f"{image_id}.jpg")
    manifest = write_manifest(image_id=IDS)
    network = {"model": "vgg16-gem", "weights": "random", "precision": "float32"}
    own = vars(embedding_of(Recipe(spec.resolve("vgg16-gem", "random"), "float32")))
    another = write_descriptors(IDS, VECTORS, name="another", **(own | {field: OTHER[field]}))
    with pytest.raises(UserError, match=f"different embeddings: {field} "):
        extract(ExtractConfig(manifest=manifest, out=another, **network))
    # The same, where the folder's record is its own and only a shard is not.
    folder = write_descriptors([], VECTORS[:0], name="own", **own)
    record = files.read_json(f"{folder}/run.json")
    files.write_json(f"{folder}/run.json", record | {"configuration": {"store": "float32"}})
    for path in sorted(Path(another).glob("part-*"))[:2]:
        shutil.copy2(path, folder)
    with pytest.raises(UserError, match=f"different embeddings: {field} "):
        extract(ExtractConfig(manifest=manifest, out=folder, **network))


def whitened_first(folder):
    """A whitening that was fitted on descriptors of the first version."""
    ones, embedding = np.ones(4, np.float32), identity.of_folder(folder).as_json()
    file = f"{folder}-whitening.npz"
    Whitening(0 * ones, np.diag(ones), ones, 0.5, "pca", {}, embedding).save(file)
    return file


AMONG_THEIR_OWN = {
    "evaluate": lambda m: evaluate(
        EvaluateConfig(manifest=m.manifest, descriptors=(m.one,), whitening=whitened_first(m.one), out=m.out)
    ),
    "index": lambda m: build(IndexConfig(descriptors=m.one, whitening=whitened_first(m.one), out=m.out)),
    "search": lambda m: search(SearchConfig(index=m.one, queries=m.one, out=m.out)),
    "audit": lambda m: audit(AuditConfig(manifest=m.manifest, descriptors=m.one, out=m.out)),
    "group": lambda m: group(GroupConfig(manifest=m.manifest, descriptors=m.one, out=m.out)),
    "mine": lambda m: mine_folder(MineConfig(manifest=m.manifest, descriptors=m.one, out=m.out, top=1)),
    "export": lambda m: export(ExportConfig(descriptors=m.one, out=m.out, format="npy")),
}


@pytest.mark.parametrize("job", AMONG_THEIR_OWN)
def test_the_first_version_is_used_among_its_own(write_manifest, write_descriptors, tmp_path, job):
    manifest = write_manifest(image_id=IDS, label=["a", "b"] * 3, split=["train"] * 6)
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    one = write_descriptors(IDS, unit, name="one", profiles=IGNORED)
    AMONG_THEIR_OWN[job](SimpleNamespace(manifest=manifest, one=one, out=str(tmp_path / "out")))
    made = files.read_json(str(tmp_path / "out" / "run.json"))["embedding"]
    assert "profiles" not in made and "version" not in made
    assert identity.of_folder(str(tmp_path / "out")).profiles == IGNORED


def test_a_whitening_of_the_first_version_stays_one(write_manifest, write_descriptors, tmp_path):
    manifest = write_manifest(image_id=IDS, label=["a", "b"] * 3, split=["train"] * 6)
    one = write_descriptors(IDS, VECTORS, name="one", profiles=IGNORED)
    whiten(WhitenConfig(manifest=manifest, descriptors=one, out=str(tmp_path / "w.npz"), dimension=2))
    build(IndexConfig(descriptors=one, whitening=str(tmp_path / "w.npz"), out=str(tmp_path / "index")))
    assert identity.of_folder(str(tmp_path / "index")).profiles == IGNORED
