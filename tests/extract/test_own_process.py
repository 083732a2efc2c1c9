"""A few photos without Ray: the descriptors are those of each photo alone, and a photo that kills is an error row."""

import fnmatch
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from dim.data import isolated
from dim.data.decode import decode
from dim.errors import UserError
from dim.extract import own_process
from dim.extract.config import ExtractConfig
from dim.extract.embedder import Embedder, Recipe
from dim.extract.job import extract
from dim.model import spec

HOOKS = Path(__file__).parents[1] / "faults" / "hooks"


@pytest.fixture
def no_ray(monkeypatch):
    """There is no connection to Ray, and none may be made."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))


@pytest.fixture
def config(demo, tmp_path):
    """An extraction of three photos, one that kills the process that decodes it, and one that is none."""
    good = sorted(demo.rglob("*.jpg"))[:300:100]
    (tmp_path / "deadly.jpg").write_bytes(good[0].read_bytes() + b"dies by SIGKILL")
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    lines = [f"{path.parent.name},{path}" for path in good] + [f"deadly,{tmp_path / 'deadly.jpg'}"]
    lines.append(f"broken,{tmp_path / 'broken.jpg'}")
    (tmp_path / "photos.csv").write_text("\n".join(["image_id,path", *lines]) + "\n")
    how = {"model": "vgg16-gem", "image_size": 64, "precision": "float32", "scales": (1.0, 0.5)}
    return ExtractConfig(manifest=str(tmp_path / "photos.csv"), out=str(tmp_path / "out"), **how)


def test_as_each_photo_alone(no_ray, config, monkeypatch, tmp_path, demo):
    monkeypatch.syspath_prepend(HOOKS)
    isolated.end()  # no process without the hooks is left
    result = extract(config)
    isolated.end()
    assert result.items() >= {"images": 5, "ok": 3, "errors": 2, "computed": 5}.items()
    (shard,) = (tmp_path / "out").glob("part-*.parquet")
    rows = {row["image_id"]: row for row in pq.read_table(shard).to_pylist()}
    errors = {name: row["error"] for name, row in rows.items() if row["status"] == "error"}
    assert errors.keys() == {"broken", "deadly"}
    assert errors["deadly"] == "decoding killed the process (SIGKILL, 3 of 3 attempts)"
    embedder = Embedder(Recipe(spec.resolve("vgg16-gem", image_size=64), "float32", (1.0, 0.5)), batch_size=1)
    for path in sorted(demo.rglob("*.jpg"))[:300:100]:
        photo = decode(path.read_bytes(), 64, "squash")
        row = rows[path.parent.name]
        np.testing.assert_allclose(row["descriptor"], embedder.embed([photo.pixels])[0], atol=1e-6)
        assert (row["width"], row["height"]) == (photo.width, photo.height)
    assert extract(config)["computed"] == 0


def test_a_cluster_is_used_for_a_single_photo_too(config, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(UserError, match="no Ray at RAY_ADDRESS"):
        extract(config)


@pytest.mark.parametrize(
    ("images", "settings", "devices", "alone"),
    [
        (1, {}, ["null"], True),
        (own_process.FEW, {}, ["null", "nvidiactl"], True),
        (own_process.FEW + 1, {}, ["null"], False),
        (1, {"workers": 2}, ["null"], False),
        (1, {}, ["null", "nvidiactl", "nvidia3"], False),
        (1, {"gpus_per_worker": 0.0}, ["nvidia0"], True),
    ],
)
def test_when_a_job_needs_no_ray_of_its_own(monkeypatch, images, settings, devices, alone):
    folder = SimpleNamespace(glob=lambda pattern: fnmatch.filter(devices, pattern))
    monkeypatch.setattr(own_process, "Path", {"/dev": folder}.get)
    assert own_process.suffices(ExtractConfig(manifest="m", model="vgg16-gem", out="o", **settings), images) == alone
