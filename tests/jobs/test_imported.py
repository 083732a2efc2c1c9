"""Descriptors made elsewhere go through every job, and their pages name the network as the user did."""

import json

import numpy as np
import pytest

from dim.audit.config import AuditConfig
from dim.audit.job import audit
from dim.data.config import ImportConfig
from dim.errors import UserError
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import evaluate
from dim.export.config import ExportConfig
from dim.export.job import export
from dim.extract import identity, vector_files
from dim.extract.import_embeddings import import_embeddings
from dim.mine.config import MineConfig
from dim.mine.job import mine_folder
from dim.search.build_index import build
from dim.search.config import IndexConfig, SearchConfig
from dim.search.job import search
from dim.whiten.config import WhitenConfig
from dim.whiten.job import whiten

IDS = [f"{label}{view}" for label in "abcdef" for view in range(4)]
VECTORS = np.random.default_rng(0).standard_normal((24, 8)) + 2 * np.repeat(np.eye(6, 8), 4, axis=0)


@pytest.fixture
def imported(tmp_path, monkeypatch, ray_session):
    """Imported in Ray tasks, in blocks of seven rows."""
    monkeypatch.setattr(vector_files, "_MOST_ROWS", 7)
    monkeypatch.setattr(vector_files, "_BLOCKS", 1)
    (tmp_path / "ids.txt").write_text("\n".join(IDS))
    np.save(tmp_path / "a.npy", VECTORS.astype(np.float16))
    out = str(tmp_path / "imported")
    import_embeddings(
        ImportConfig(
            "embeddings",
            str(tmp_path / "a.npy"),
            out,
            name="dinov2-vitb14",
            ids=str(tmp_path / "ids.txt"),
            normalise=True,
        )
    )
    return out


def test_each_job_takes_them(imported, write_manifest, tmp_path):
    manifest = write_manifest(image_id=IDS, label=[image_id[0] for image_id in IDS], split=["train", "test"] * 12)

    def out(name):
        return str(tmp_path / name)

    whitened = whiten(WhitenConfig(manifest=manifest, descriptors=imported, out=out("w.npz"), dimension=4))
    assert whitened["dimension"] == 4
    assert mine_folder(MineConfig(manifest=manifest, descriptors=imported, out=out("mined")))["candidates"] > 0
    assert audit(AuditConfig(manifest=manifest, descriptors=imported, out=out("audited")))["images"] == 24
    found = evaluate(
        EvaluateConfig(
            manifest=manifest, descriptors=(imported,), out=out("measured"), split="test", whitening=out("w.npz")
        )
    )
    assert found["map"] > 0.2 and found["embedding"]["name"] == "dinov2-vitb14"
    assert build(IndexConfig(descriptors=imported, out=out("index"), whitening=out("w.npz")))["rows"] == 24
    config = SearchConfig(index=out("index"), queries=imported, whitening=out("w.npz"), out=out("found"), top=5)
    assert search(config)["queries"] == 24
    ranked = EvaluateConfig(manifest=manifest, ranked=out("found/ranked.parquet"), out=out("lists"))
    assert evaluate(ranked)["n_queries"] == 24
    assert export(ExportConfig(descriptors=imported, out=out("exported"), format="npy"))["rows"] == 24
    assert identity.of_folder(out("index")).whitening and identity.of_folder(out("exported")).network == "dinov2-vitb14"
    for page in ("measured/report.html", "found/report.html"):
        assert "dinov2-vitb14, made elsewhere" in (tmp_path / page).read_text()
    record = json.loads((tmp_path / "index" / "run.json").read_text())
    assert record["embedding"].keys() == {"id", "name", "dimension", "whitening", "version"}


def test_photos_are_no_queries_of_descriptors_made_elsewhere(imported, demo, tmp_path):
    photo = str(next(demo.glob("*/*.jpg")))
    with pytest.raises(UserError, match=r"are photos, and .* holds descriptors made elsewhere, by 'dinov2-vitb14'"):
        search(SearchConfig(index=imported, queries=photo, model="vgg16-gem", out=str(tmp_path / "found")))
