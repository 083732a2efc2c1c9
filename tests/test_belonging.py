"""Pieces that don't belong together: each job that reads descriptors refuses a store that has lost a shard, or has one
that isn't its own, though the embedding is the same; and writes nothing.
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dim.audit.config import AuditConfig
from dim.audit.job import audit
from dim.errors import UserError
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import evaluate
from dim.export.config import ExportConfig
from dim.export.job import LAYOUTS, export
from dim.extract import finished_shards, store
from dim.extract.identity import of_folder
from dim.group.config import GroupConfig
from dim.group.job import group
from dim.io import files
from dim.mine.config import MineConfig
from dim.mine.job import mine_folder
from dim.search.build_index import build
from dim.search.config import IndexConfig, SearchConfig
from dim.search.job import search
from dim.whiten.config import WhitenConfig
from dim.whiten.job import whiten

IDS = [f"photo {number}" for number in range(9)]
VECTORS = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)

JOBS = {
    "index": lambda _, folder, out: build(IndexConfig(descriptors=folder, out=out)),
    "search": lambda _, folder, out: search(SearchConfig(index=folder, queries=folder, out=out)),
    "evaluate": lambda manifest, folder, out: evaluate(
        EvaluateConfig(manifest=manifest, descriptors=(folder,), out=out, report=False)
    ),
    "audit": lambda manifest, folder, out: audit(AuditConfig(manifest=manifest, descriptors=folder, out=out)),
    "group": lambda manifest, folder, out: group(GroupConfig(manifest=manifest, descriptors=folder, out=out)),
    "mine": lambda manifest, folder, out: mine_folder(MineConfig(manifest=manifest, descriptors=folder, out=out)),
    "whiten": lambda manifest, folder, out: whiten(
        WhitenConfig(manifest=manifest, descriptors=folder, out=f"{out}/w.npz", dimension=2)
    ),
    **{
        f"export, {layout}": lambda _, folder, out, layout=layout: export(
            ExportConfig(descriptors=folder, out=out, format=layout)
        )
        for layout in LAYOUTS
    },
}


def parts(folder):
    return sorted(Path(folder).glob("part-*.parquet"))


def lost(folder, _):
    parts(folder)[1].unlink()


def lost_with_its_statistics(folder, _):
    parts(folder)[1].with_suffix(".json").unlink(missing_ok=True)
    parts(folder)[1].unlink()


def strange(folder, other):
    for path in Path(other).glob("part-*"):
        shutil.copy2(path, folder)


def unmarked(folder, _):
    path = parts(folder)[1]
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def of_another(folder, other):
    """A shard of another store in the place, and under the name, of an own one."""
    shutil.copy2(parts(other)[0], parts(folder)[1])


def with_other_values(folder, _):
    """A shard of the same size and rows, sound in itself: another run of the network, say."""
    path = parts(folder)[1]
    table = pq.read_table(path)
    turned = np.roll(store.vectors(table["descriptor"]), 1, axis=1)
    column = store.pa.FixedSizeListArray.from_arrays(turned.ravel(), 4)
    size = path.stat().st_size
    store.write_shard(folder, path.stem, table.set_column(1, store.schema(4).field(1), column))
    assert path.stat().st_size == size


SAID = {
    lost: r"no file '.*part-\w+\.parquet'",
    lost_with_its_statistics: r"no file '.*part-\w+\.parquet'; make it again with extract\.py",
    strange: r"part-\w+\.parquet' is not one of the shards that run\.json lists; remove it, or run the same extract",
    unmarked: r"part-\w+\.parquet' (is not the file that its run\.json describes|is damaged)",
    of_another: r"part-\w+\.parquet' is (not the file that its run\.json describes|damaged)",
    with_other_values: r"part-\w+\.parquet' is damaged \(sha256 ",
}


@pytest.fixture
def store_of(write_manifest, write_descriptors, request):
    """Makes a manifest, a store of its photos, and one of other photos."""
    if "mine" in request.node.name or "whiten" in request.node.name:
        request.getfixturevalue("ray_session")

    def make(sealed):
        manifest = write_manifest(image_id=IDS, label=["a", "b", "c"] * 3, split=["train"] * 9)
        folder = write_descriptors(IDS, VECTORS, sealed=sealed)
        return manifest, folder, write_descriptors(["x", "y"], VECTORS[:2], name="other")

    return make


def refused(job, manifest, folder, out, said):
    with pytest.raises(UserError, match=said) as caught:
        JOBS[job](manifest, folder, str(out))
    assert "\n" not in str(caught.value)
    # What shows only in the content, shows when that is read, block by block.
    assert not (out / "run.json" if "sha256" in said else out).exists()


@pytest.mark.parametrize("job", JOBS)
def test_a_sealed_store_is_read(store_of, tmp_path, job):
    manifest, folder, _ = store_of(sealed=True)
    copied = shutil.copytree(folder, tmp_path / "elsewhere")  # without its modification times, as from an object store
    JOBS[job](manifest, str(copied), str(tmp_path / "out"))


# Search streams the vectors over and over, and doesn't hash them each time.
HASHED = [job for job in JOBS if job != "search"]


@pytest.mark.parametrize(
    ("job", "harm"), [(job, harm) for harm in SAID for job in (HASHED if harm is with_other_values else JOBS)]
)
def test_a_store_that_is_not_whole_is_refused(store_of, tmp_path, job, harm):
    manifest, folder, other = store_of(sealed=True)
    harm(folder, other)
    refused(job, manifest, folder, tmp_path / "out", SAID[harm])


@pytest.mark.parametrize("job", JOBS)
def test_a_store_without_a_seal_is_known_by_its_statistics_and_the_number_of_its_images(store_of, tmp_path, job):
    manifest, folder, other = store_of(sealed=False)
    whole = shutil.copytree(folder, tmp_path / "whole")
    record = files.read_json(f"{whole}/run.json")
    files.write_json(f"{whole}/run.json", record | {"counts": {"images": 9}})
    for harm, said in {
        lost: r"no file '.*part-\w+\.parquet'; run the same extract\.py again",
        lost_with_its_statistics: r"has 6 rows in its shards, and 9 images in its run\.json; run the same extract",
        strange: r"has 11 rows in its shards, and 9 images in its run\.json",
        unmarked: r"part-\w+\.parquet' is damaged",
    }.items():
        harmed = shutil.copytree(whole, tmp_path / harm.__name__)
        harm(harmed, other)
        refused(job, manifest, str(harmed), tmp_path / "out", said)
    JOBS[job](manifest, str(whole), str(tmp_path / "out"))


def test_a_shard_that_hides_what_made_it_is_refused_among_others_that_say_so(store_of, tmp_path):
    manifest, folder, _ = store_of(sealed=False)
    name = parts(folder)[1].stem
    facts = store.write_shard(folder, name, store.read_shard(folder, name).replace_schema_metadata(None))
    files.write_json(f"{folder}/{name}.json", facts)
    refused("evaluate", manifest, folder, tmp_path / "out", "not all shards of .* name their embedding")


def test_the_seal_lists_the_shards_with_their_facts(store_of):
    _, folder, _ = store_of(sealed=True)
    sealed = files.read_json(f"{folder}/run.json")["files"]
    assert [path.name for path in parts(folder)] == sorted(sealed)
    for path in parts(folder):
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        assert sealed[path.name] == {"rows": 3, "bytes": len(content), "sha256": sha256}
    assert [shard.name for shard in finished_shards.belonging(folder)] == [path.stem for path in parts(folder)]
    assert of_folder(folder).pooling == "gem"


def test_an_index_with_the_index_json_of_another_is_refused(write_descriptors, tmp_path):
    made = [write_descriptors(IDS, VECTORS + shift, name=name) for name, shift in (("one", 0), ("two", 1))]
    one, two = (tmp_path / f"index of {Path(folder).name}" for folder in made)
    for folder, out in zip(made, (one, two), strict=True):
        build(IndexConfig(descriptors=folder, out=str(out)))
    assert (one / "index.json").stat().st_size == (two / "index.json").stat().st_size
    shutil.copy2(two / "index.json", one)
    with pytest.raises(UserError, match=r"index\.json' is not the file that its run\.json describes; make it again"):
        search(SearchConfig(index=str(one), queries=made[0], out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
