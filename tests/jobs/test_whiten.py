"""whiten.py over folders of descriptors: the same whitening however they are stored, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from terminal import messages

from dim.app import tasks
from dim.data import manifest as manifests
from dim.errors import UserError
from dim.extract import store
from dim.extract.embedding import NetworkEmbedding, from_json
from dim.io import files
from dim.model import whitening
from dim.whiten import distributed_sums, fit
from dim.whiten.config import WhitenConfig
from dim.whiten.distributed_sums import sum_moments, sum_pairs
from dim.whiten.fit import Moments, fit_learned, fit_pca
from dim.whiten.job import whiten

JOB = Path(__file__).resolve().parents[2] / "jobs" / "whiten.py"
EMBEDDING = NetworkEmbedding(
    backbone="vgg16",
    layer="block5_conv3",
    pooling="gem",
    weights="abc",
    preprocessing="caffe",
    image_size=224,
    resize="squash",
    scales=(1.0,),
    scales_mean="mean",
    whitening=None,
    precision="float32",
)


def write_descriptors(folder: Path, ids: list[str], vectors: np.ndarray, shards: int, errors: set[int]) -> str:
    """A folder as extract.py leaves it; the rows `errors` could not be decoded."""
    folder.mkdir()
    files.write_json(str(folder / "run.json"), {"job": "extract", "embedding": EMBEDDING.as_json()})
    schema = store.schema(vectors.shape[1])
    for rows in np.array_split(np.arange(len(ids)), shards):
        table = pa.table(
            {
                "image_id": [ids[row] for row in rows],
                "descriptor": pa.array([None if row in errors else vectors[row] for row in rows], schema.field(1).type),
                "status": [store.ERROR if row in errors else store.OK for row in rows],
                **{name: pa.nulls(len(rows), schema.field(name).type) for name in schema.names[3:]},
            },
            schema=schema,
        )
        store.write_shard(str(folder), store.shard_name(table["image_id"], pa.array([""] * len(rows))), table)
    return str(folder)


class Photos:
    """90 photos: 60 in train, of 27 labels with 1 to 3 images each or of none; 3 could not be decoded."""

    def __init__(self, folder: Path, shards: int) -> None:
        random = np.random.default_rng(0)
        self.vectors = random.normal(size=(90, 8)).astype(np.float32) * np.arange(1, 9, dtype=np.float32)
        self.vectors += 20 * random.normal(size=(17, 8)).astype(np.float32)[np.arange(90) % 17]
        self.vectors /= np.linalg.norm(self.vectors, axis=1, keepdims=True)
        self.errors = {3, 20, 59}
        self.train = [row for row in range(60) if row not in self.errors]
        self.labels = [None if row % 10 == 9 else f"label {row % 17 if row < 50 else row}" for row in range(90)]
        self.ids = [f"photo {row}" for row in range(90)]
        order = random.permutation(90)
        self.manifest = str(folder / "photos.csv")
        rows = [f"{self.ids[r]},{r}.jpg,{self.labels[r] or ''},{'train' if r < 60 else 'test'}" for r in order]
        (folder / "photos.csv").write_text("\n".join(["image_id,path,label,split", *rows]) + "\n")
        # The shards hold the photos in another order than the manifest.
        self.descriptors = write_descriptors(folder / "descriptors", self.ids, self.vectors, shards, self.errors)
        self.out = str(folder / "new" / "whitening.npz")

    def config(self, **changes) -> WhitenConfig:
        return WhitenConfig(**{"manifest": self.manifest, "descriptors": self.descriptors, "out": self.out} | changes)


@pytest.fixture
def photos(tmp_path) -> Photos:
    return Photos(tmp_path, shards=5)


def test_pca_over_shards_is_that_of_all_rows(ray_session, photos):
    result = whiten(photos.config(dimension=4, power=0.5))
    expected = fit_pca(fit.moments_of(photos.vectors[photos.train]), 4, {}, power=0.5)
    found = whitening.load(photos.out)
    np.testing.assert_allclose(found.projection, expected.projection, atol=1e-6)
    assert result == {
        "kind": "pca",
        "rows": 57,
        "dimension": 4,
        "power": 0.5,
        "explained_variance": pytest.approx(expected.explained_variance, abs=1e-6),
        "whitening": photos.out,
    }
    assert found.learned_on == {"manifest": photos.manifest, "split": "train", "rows": 57}
    assert from_json(found.embedding, photos.out) == EMBEDDING


def test_learned_over_shards_is_that_of_all_pairs(ray_session, photos):
    groups = [[r for r in photos.train if photos.labels[r] == label] for label in set(photos.labels) - {None}]
    groups = [group for group in groups if len(group) > 1]
    queries = [row for group in groups for row in group]
    covariance = np.zeros((8, 8))
    for group in groups:
        for query in group:
            for match in set(group) - {query}:
                difference = (photos.vectors[query] - photos.vectors[match]).astype(np.float64)
                covariance += np.outer(difference, difference) / (len(group) - 1) / len(queries)
    count = len(queries) - len(groups)
    differences = Moments(count, np.zeros(8), covariance * count)
    expected = fit_learned(fit.moments_of(photos.vectors[queries]), differences, 6, {})

    result = whiten(photos.config(kind="learned", dimension=6))
    found = whitening.load(photos.out)
    assert (result["rows"], result["dimension"], found.kind) == (len(queries), 6, "learned")
    assert found.learned_on["shrinkage"] == pytest.approx(expected.learned_on["shrinkage"])
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-9)
    np.testing.assert_allclose(found.apply(photos.vectors), expected.apply(photos.vectors), atol=1e-6)


@pytest.mark.parametrize("kind", ["pca", "learned"])
def test_slices_of_labels_and_workers_make_no_difference(photos, monkeypatch, kind):
    monkeypatch.setattr(distributed_sums, "UNIT_ROWS", 5)
    table = manifests.read(photos.manifest)
    found = []
    for cpus, share in ((1, 2**30), (2, 8 * 8 * 4), (7, 1)):
        monkeypatch.setattr(tasks.os, "cpu_count", lambda cpus=cpus: cpus)
        moments = (
            [sum_moments(photos.descriptors, table)] if kind == "pca" else sum_pairs(photos.descriptors, table, share)
        )
        found.append(moments)
    for other in found[1:]:
        for one, again in zip(found[0], other, strict=True):
            assert again.count == one.count
            np.testing.assert_allclose(again.mean, one.mean, rtol=1e-14)
            np.testing.assert_allclose(again.scatter, one.scatter, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["pca", "learned"])
def test_one_shard_and_fifty_give_the_same_whitening(ray_session, tmp_path, kind):
    found = []
    for shards in (1, 50):
        (tmp_path / str(shards)).mkdir()
        photos = Photos(tmp_path / str(shards), shards)
        whiten(photos.config(kind=kind, dimension=5))
        found.append(whitening.load(photos.out))
    np.testing.assert_allclose(found[0].projection, found[1].projection, atol=1e-6)


def test_more_labels_than_one_slice_holds(ray_session, tmp_path):
    labels = np.arange(2 * 1500) // 2
    vectors = np.random.default_rng(2).normal(size=(len(labels), 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [str(row) for row in range(len(labels))]
    table = pa.table({"image_id": ids, "path": ids, "label": labels.astype(str)})
    order = np.random.default_rng(3).permutation(len(labels))
    folder = write_descriptors(tmp_path / "descriptors", [ids[row] for row in order], vectors[order], 3, set())
    queries, found = sum_pairs(folder, manifests.checked("photos.csv", table), share=1000 * 3 * 8)
    differences = vectors[::2].astype(np.float64) - vectors[1::2]
    assert found.count == len(differences)
    np.testing.assert_allclose(found.scatter, differences.T @ differences, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(queries.mean, vectors.mean(axis=0, dtype=np.float64), atol=1e-12)


def test_descriptors_that_lack_an_image(ray_session, photos):
    more = manifests.read(photos.manifest).table.slice(0, 1).to_pylist()[0] | {"image_id": "photo 90"}
    table = pa.concat_tables(
        [manifests.read(photos.manifest).table, pa.Table.from_pylist([more])], promote_options="default"
    )
    with pytest.raises(UserError, match="lacks 1 of the 91 images asked for, the first 'photo 90'; run extract"):
        sum_moments(photos.descriptors, manifests.checked(photos.manifest, table))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimension": 9}, "57 descriptors of 8 values allow a whitening to 1 to 8 dimensions.*not to 9"),
        ({"split": "val"}, "has no row with split 'val'"),
        ({"power": 1.5}, "--power must be from 0 to 1, not 1.5"),
        ({"power": 0.5, "kind": "learned"}, "for --kind pca only"),
        ({"shrinkage": 0.5}, "for --kind learned only"),
        ({"descriptors": "nowhere"}, "'nowhere' is not an output folder of dim"),
        ({"descriptors": None}, "give --descriptors DIR for a whitening file, or --model X"),
        ({"model": "vgg16-gem"}, "give --descriptors DIR for a whitening file, or --model X"),
        ({"regions": True}, "--regions needs --model and --kind pca"),
        ({"manifest": "nowhere.csv"}, "no file 'nowhere.csv'"),
    ],
)
def test_what_can_not_be_is_refused_and_nothing_written(ray_session, photos, changes, message):
    with pytest.raises(UserError, match=message):
        whiten(photos.config(**changes))
    assert not Path(photos.out).parent.exists()


def test_a_folder_is_no_place_for_the_file(photos, tmp_path):
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        whiten(photos.config(out=str(tmp_path)))


def test_learned_needs_a_label_with_two_images(ray_session, photos):
    lonely = "\n".join(["image_id,path,label,split", *(f"photo {r},{r}.jpg,{r},train" for r in range(60))])
    Path(photos.manifest).write_text(lonely + "\n")
    with pytest.raises(UserError, match=r"no label in .* has two images among the 60 rows"):
        whiten(photos.config(kind="learned"))


def test_job_ends_with_2_and_one_line_on_wrong_input(photos):
    flags = ["--manifest", photos.manifest, "--descriptors", photos.descriptors, "--out", photos.out, "--split", "val"]
    job = subprocess.run([sys.executable, str(JOB), *flags], capture_output=True, text=True, check=False)
    assert (job.returncode, job.stdout) == (2, "")
    assert messages(job.stderr) == [
        f"error: {photos.manifest!r} has no row with split 'val'; its splits are test, train"
    ]


def test_job_runs_on_a_ray_of_its_own(photos):
    flags = ["--manifest", photos.manifest, "--descriptors", photos.descriptors, "--out", photos.out]
    job = subprocess.run([sys.executable, str(JOB), *flags], capture_output=True, text=True, check=True)
    result = json.loads(job.stdout.splitlines()[-1])
    assert (result["kind"], result["dimension"], result["power"]) == ("pca", 8, 0.25)
    assert whitening.load(photos.out).explained_variance == pytest.approx(1)
