"""An index in parts, filled by any number of workers, killed at any step, and brought up to date."""

import contextlib
import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest
from marks import slow

from dim.app import cluster, tasks
from dim.errors import UserError
from dim.io import tables
from dim.search import approximate, build_index, faiss_files, index_factory, read_index, trained_index, write_parts
from dim.search.build_index import build
from dim.search.config import IndexConfig
from dim.search.index_parts import HeldShard, cut, planned

ROWS, DIMENSION = 120, 16
RANDOM = np.random.default_rng(0)
IDS = [f"p{number:03d}" for number in RANDOM.permutation(ROWS)]
VECTORS = RANDOM.standard_normal((ROWS, DIMENSION)).astype(np.float32)
VECTORS[50:90] = VECTORS[7]  # more equal rows than a list has
QUERIES = np.concatenate([VECTORS[:30], RANDOM.standard_normal((30, DIMENSION)).astype(np.float32)])
MERGED = ["IVF8,Flat", "IVF4,PQ4x4", "IVF4,PQ4x4fs", "PQ4x4", "SQ8", "PCA8,IVF4,SQ8", "L2norm,SQfp16"]


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(write_parts, "UNIT_ROWS", 20)


@pytest.fixture
def one_cpu(monkeypatch):
    """Several threads would add rows to a graph in any order."""
    monkeypatch.setattr(tasks.os, "cpu_count", lambda: 1)


@pytest.fixture
def store(write_descriptors, tmp_path):
    """Writes the descriptors of some rows: the same rows give the same shards."""

    def write(rows=range(ROWS), name="descriptors"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        return write_descriptors([IDS[row] for row in rows], VECTORS[list(rows)], name=name)

    return write


@pytest.fixture
def built(tmp_path):
    def build_into(folder, name="index", **changes):
        out = tmp_path / name
        return out, build(IndexConfig(descriptors=folder, out=str(out), **changes))

    return build_into


def lists(out, count=10, parameters=None):
    """The lists of all queries, as (id, score)."""
    found = read_index.read(str(out), None, parameters)
    ids = found.ids.to_pylist()
    rows, scores = found.database.nearest(QUERIES, count)
    return [
        [(ids[row], score) for row, score in zip(*one, strict=True) if row >= 0]
        for one in zip(rows.tolist(), scores.tolist(), strict=True)
    ]


def content(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.index"))}


@pytest.mark.parametrize("factory", ["IVF8,Flat", *slow("Flat", "HNSW8")])
def test_any_number_of_workers_builds_the_same_files(store, built, one_cpu, factory):
    folder = store()
    first, *others = (content(built(folder, str(n), factory=factory, workers=n)[0]) for n in (1, 2, 3, 7))
    assert first
    assert all(other == first for other in others)


@pytest.mark.parametrize("factory", ["Flat", MERGED[0], *slow(*MERGED[1:])])
def test_any_number_of_parts_gives_the_same_lists(store, built, factory):
    folder = store()
    expected = None
    for parts in (1, 2, 3, 7):
        out, result = built(folder, str(parts), factory=factory, parts=parts)
        assert result["parts"] == parts == len(list(out.rglob("knn.index")))
        assert parts == 1 or not (out / "knn.index").exists()
        found = [lists(out, count) for count in (1, 10, 60)]
        expected = expected or found
        assert found == expected
        assert sorted(read_index.read(str(out), None, None).ids.to_pylist()) == sorted(IDS)


def test_merged_units_are_what_faiss_adds_one_after_another(store, built):
    out, _ = built(store(), factory="IVF8,Flat")
    expected = faiss.read_index(str(out / "trained.index"))
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    for image_id in tables.read(str(out / "ids.parquet"))["image_id"].to_pylist():
        expected.add(unit[IDS.index(image_id)][None])
    assert faiss.serialize_index(expected).tobytes() == (out / "knn.index").read_bytes()


def test_ray_tasks_build_and_search_an_index(ray_session, store, built):
    for parts in (1, 3):
        out, result = built(store(), str(parts), factory="IVF8,Flat", parts=parts)
        assert result["parts"] == parts
        expected = lists_of_one_index(faiss.read_index(str(out / "trained.index")), range(ROWS), 30)
        assert lists(out, 30) == expected
    out, _ = built(store(range(90)), "1", factory="IVF8,Flat", parts=1)
    assert len(read_index.read(str(out), None, None).ids) == 90


def test_graphs_in_parts_find_most_of_what_exact_search_finds(store, built):
    folder = store()
    exact = lists(built(folder, "exact")[0])
    found = lists(built(folder, "graphs", factory="HNSW16", parts=3)[0])
    pairs = zip(found, exact, strict=True)
    recall = np.mean(
        [len({*map(tuple, one)} and {i for i, _ in one} & {i for i, _ in other}) / 10 for one, other in pairs]
    )
    print(f"recall@10 of HNSW16 in 3 parts: {recall:.3f}")
    assert recall > 0.8


STEPS = [(write_parts.PartWriter, "_fill"), (write_parts.PartWriter, "_write_ids"), (build_index.Output, "finish")]


@pytest.mark.parametrize("step", [STEPS[0], *slow(*STEPS[1:])], ids=[name for _, name in STEPS])
@pytest.mark.parametrize("changes", [{"factory": "IVF8,Flat", "parts": 2}, *slow({})])
def test_a_build_that_is_killed_goes_on(store, built, monkeypatch, step, changes):
    rows = [*range(60), *range(90, ROWS)]
    for before in (None, range(100)):  # a new index, and one that gets and loses rows
        if before:
            built(store(before), "killed", **changes)
        expected = None
        if before:
            built(store(before), "whole", **changes)
        expected = content(built(store(rows), "whole" if before else "new", **changes)[0])

        def dying(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(*step, dying)
            with pytest.raises(KeyboardInterrupt):
                built(store(rows), "killed", **changes)
        out, result = built(store(rows), "killed", **changes)
        assert content(out) == expected
        assert not (out / "building").exists()
        assert result["rows"] == len(rows) == len(read_index.read(str(out), None, None).ids)
        shutil.rmtree(out)


def test_a_unit_that_was_damaged_is_refused_and_filled_again(store, built, monkeypatch):
    folder, fill = store(), write_parts.PartWriter._fill

    def filled_and_damaged(writer, units):
        fill(writer, units)
        path = Path(writer.filling.notes) / f"{units[0].key}.index"
        path.write_bytes(path.read_bytes()[:-1] + b"x")

    with monkeypatch.context() as patched:
        patched.setattr(write_parts.PartWriter, "_fill", filled_and_damaged)
        with pytest.raises(UserError, match="was damaged; run the same command again"):
            built(folder, factory="IVF8,Flat")
    assert content(built(folder, factory="IVF8,Flat")[0]) == content(built(folder, "new", factory="IVF8,Flat")[0])


def damage(folder, rows):
    """Changes a descriptor in each shard that has some of `rows`, so that the shard can't be loaded."""
    for path in sorted(Path(folder).glob("part-*.parquet"))[1:]:  # the first one tells the dimension
        table = tables.read(str(path))
        if IDS.index(table["image_id"][0].as_py()) in rows:
            values = np.array(table["descriptor"][0].as_py(), np.float32).tobytes()
            path.write_bytes(path.read_bytes().replace(values, values[::-1]))


def lists_of_one_index(empty, rows, count):
    """The lists of `empty` with `rows`, by FAISS alone."""
    rows = list(rows)
    unit = [(v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in (VECTORS[rows], QUERIES)]
    empty.add(unit[0])
    scores, found = empty.search(QUERIES, len(rows))
    lists = []
    for numbers, own in zip(found, scores, strict=True):
        one = [(IDS[rows[i]], score) for i, score in zip(numbers, own, strict=True) if i >= 0]
        lists.append(sorted(one, key=lambda pair: (-pair[1], pair[0]))[:count])
    return lists


@pytest.mark.parametrize("factory", [MERGED[0], "Flat", "HNSW16", *slow(*MERGED[1:], "IVF4,PQ4x4,RFlat")])
def test_rows_are_added_and_removed_and_the_rest_is_kept(store, built, factory):
    removable = factory not in {"HNSW16", "IVF4,PQ4x4,RFlat"}
    settings = {"factory": factory, "parts": 2}
    before, now = range(90), [*range(30), *(range(45, ROWS) if removable else range(30, ROWS))]
    out, _ = built(store(before), **settings)
    trained = content(out).get("trained.index")
    folder = store(now)
    damage(folder, before)  # what is kept is not read again
    _, result = built(folder, **settings)
    kept = 75 if removable else 90
    assert (result["kept"], result["added"], result["removed"]) == (kept, 30, 90 - kept)
    assert (result["differs"] is None) == (factory in {"Flat", "L2norm,SQfp16"})
    assert content(out).get("trained.index") == trained
    found = lists(out, 30)
    assert sorted(read_index.read(str(out), None, None).ids.to_pylist()) == sorted(IDS[row] for row in now)
    if removable:
        empty = index_factory.empty_index(factory, DIMENSION, 0)
        expected = lists_of_one_index(faiss.read_index(str(out / "trained.index")) if trained else empty, now, 30)
        for one, other in zip(found, expected, strict=True):
            assert [i for i, _ in one] == [i for i, _ in other] or factory.startswith("PCA")
            np.testing.assert_allclose([score for _, score in one], [score for _, score in other], atol=1e-6)
    files = {path: path.stat().st_mtime_ns for path in out.rglob("knn.index")}
    _, result = built(folder, **settings)
    assert (result["kept"], result["added"], result["removed"]) == (len(now), 0, 0)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("knn.index")} == files


@pytest.mark.parametrize("factory", ["HNSW16", "IVF4,PQ4x4,RFlat"])
def test_a_part_that_can_not_lose_rows_is_filled_again(store, built, factory):
    out, _ = built(store(range(90)), factory=factory, parts=2)
    _, result = built(store(range(15, 90)), factory=factory, parts=2)
    assert (result["kept"], result["added"], result["removed"]) == (75, 0, 15)
    assert {image_id for one in lists(out) for image_id, _ in one} <= {IDS[row] for row in range(15, 90)}


@pytest.mark.parametrize("name", ["part-00000/knn.index", "part-00001/ids.parquet", "trained.index", "index.json"])
@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_what_is_missing_or_damaged_is_refused_and_made_again(store, built, name, how):
    folder = store()
    settings = {"factory": "IVF4,Flat", "parts": 2}
    out, _ = built(folder, **settings)
    before = content(out)
    if how == "missing":
        (out / name).unlink()
    else:
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole[:-5] + b"x" + whole[-4:])
    if name != "trained.index" or how == "missing":  # a search doesn't read it
        with pytest.raises(UserError, match=name):
            read_index.read(str(out), None, None)
    built(folder, **settings)
    assert content(out) == before
    read_index.read(str(out), None, None)


def test_a_part_of_another_index_is_refused(store, built):
    one, _ = built(store(), "one", parts=2)
    two, _ = built(store(), "two", parts=3)
    shutil.copy(two / "part-00000" / "ids.parquet", one / "part-00000")
    with pytest.raises(UserError, match=r"ids\.parquet' is not the file that its run.json describes; make it again"):
        read_index.read(str(one), None, None)


def test_an_image_in_two_parts_is_refused(store, built):
    out, _ = built(store(), parts=2)
    record = json.loads((out / "run.json").read_text())
    for name in ("knn.index", "ids.parquet"):
        shutil.copy(out / "part-00000" / name, out / "part-00001")
        record["files"][f"part-00001/{name}"] = record["files"][f"part-00000/{name}"]
    (out / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="has an image in two of its parts; make it again"):
        read_index.read(str(out), None, None)


@pytest.mark.parametrize("changes", [{"factory": "SQ8"}, {"parts": 3}, *slow({"seed": 1}, {"train_rows": 30})])
def test_other_settings_build_the_index_anew(store, built, changes):
    out, _ = built(store(), factory="IVF4,Flat", parts=2)
    settings = {"factory": "IVF4,Flat", "parts": 2} | changes
    _, result = built(store(), **settings)
    assert (result["kept"], result["added"]) == (0, ROWS)
    assert content(out) == content(built(store(), "fresh", **settings)[0])
    if "parts" in changes:
        _, result = built(store(), **settings, workers=1)
        assert (result["kept"], result["added"]) == (ROWS, 0)
        built(store(), factory="IVF4,Flat", parts=1)
        assert not list(out.glob("part-*"))


def shards(*sizes, first=0):
    return [HeldShard(f"s{number}", size) for number, size in enumerate(sizes, first)]


def test_shards_are_cut_into_groups_of_about_the_same_size():
    for count in range(1, 12):
        groups = cut(some := shards(*RANDOM.integers(1, 30, 40)), count)
        assert [shard for group in groups for shard in group] == some
        assert len(groups) == count
        assert all(groups)
        rows = [sum(shard.rows for shard in group) for group in groups]
        assert max(rows) - min(rows) <= 60


@pytest.mark.parametrize("sizes", [[100, 1, 1], [1, 1, 100], [1, 100, 1, 100, 1], [5], [1, 1]])
def test_shards_of_very_different_sizes_are_cut_into_as_many_groups(sizes):
    for count in range(1, 7):
        groups = cut(shards(*sizes), count)
        assert len(groups) == min(count, len(sizes))
        assert all(groups)
        assert [shard for group in groups for shard in group] == shards(*sizes)
    assert cut([], 3) == []


def test_as_many_parts_as_asked_for_are_kept():
    """An earlier cut into fewer parts than `--parts` was built anew by each run."""
    some = shards(100, 1, 1)
    one = planned(some, [], 10**6, 3)
    assert [part.base for part in planned(some, one, 10**6, 3)] == one
    assert len(planned(some[1:], one, 10**6, 3)) == 2


def test_a_part_holds_as_many_bytes_of_rows_as_of_centroids():
    index = index_factory.empty_index("IVF65536,PQ64", 512, 0)
    config = IndexConfig("descriptors", "out", memory="256MiB")
    assert build_index._most_rows(index, config) == 65536 * 512 * 4 // 72
    assert build_index._most_rows(index, IndexConfig("descriptors", "out", memory="1TB")) > 65536 * 512 * 4 // 72


@pytest.mark.parametrize(("factory", "share"), [("IVF65536,Flat", 2), ("PCA64,IVF65536,Flat", 4)])
def test_the_training_sample_fits_in_half_of_the_memory(factory, share):
    index = index_factory.empty_index(factory, 512, 0)
    config = IndexConfig("descriptors", "out", memory="256MiB")
    assert trained_index.sample_size(config, index) == 2**28 // share // (512 * 4)
    small = index_factory.empty_index("IVF16,Flat", 512, 0)
    assert trained_index.sample_size(config, small) == index_factory.LEAST_ROWS


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["parts"].append({}),
        lambda found: found["parts"].append(None),
        lambda found: found["parts"][0].pop("shards"),
        lambda found: found["parts"][0].update(name="../other"),  # another folder
        lambda found: found["parts"][0].update(name=3),
        lambda found: found["trained"].pop("recipe"),
    ],
)
def test_an_index_json_that_this_job_does_not_write_is_replaced(store, built, change):
    folder = store()
    out, _ = built(folder, parts=2)
    before = content(out)
    document = json.loads((out / "index.json").read_text())
    change(document)
    (out / "index.json").write_text(json.dumps(document))
    _, result = built(folder, parts=2)
    assert (result["kept"], result["added"]) == (0, ROWS)
    assert content(out) == before


@pytest.mark.parametrize("parts", [1, 2])
def test_a_flat_index_that_is_replaced_while_it_is_searched_is_refused(store, built, parts):
    out, _ = built(store(range(90)), parts=parts)
    database = read_index.read(str(out), None, None).database
    database.nearest(QUERIES, 3)
    built(store(), parts=parts)
    with pytest.raises(UserError, match=r"knn\.index' changed while this job ran; run the same command again"):
        database.nearest(QUERIES, 3)


def test_a_large_index_that_was_replaced_is_refused_though_only_its_size_is_compared(store, built, monkeypatch):
    monkeypatch.setattr(faiss_files, "MOST_HASHED", 0)
    out, _ = built(store(), factory="PQ4x4")
    file = read_index.read(str(out), None, None).database.parts[0]
    built(store(), factory="PQ4x4", seed=1)
    approximate._opened.cache_clear()  # as in another process
    assert Path(out / "knn.index").stat().st_size == file.size
    with pytest.raises(UserError, match=r"knn\.index' changed while this job ran; run the same command again"):
        file.open()


def test_descriptors_that_other_nodes_cannot_read_are_refused_before_the_training(store, built, monkeypatch):
    def refuse(paths, written=False):
        raise UserError(f"{list(paths)} {written}")

    monkeypatch.setattr(cluster, "is_local", lambda: False)
    monkeypatch.setattr(cluster, "joined", contextlib.nullcontext)
    monkeypatch.setattr(cluster, "require_shared", refuse)
    monkeypatch.setattr(trained_index, "new", lambda *_: pytest.fail("a task reads the descriptors"))
    with pytest.raises(UserError, match=r"descriptors'\] False"):
        built(store(), factory="IVF4,Flat")


def test_new_shards_go_into_the_last_part_while_it_has_room():
    old, new = shards(10, 10), shards(10, 10, first=2)
    one = planned(old, [], 25, None)
    assert [(part.name, part.rows) for part in one] == [("", 20)]
    grown = planned([*old, *new], one, 40, None)
    assert [(part.name, part.rows, part.base) for part in grown] == [("", 40, one[0])]
    split = planned([*old, *new], one, 25, None)
    assert [(part.name, part.rows) for part in split] == [("part-00000", 20), ("part-00001", 20)]
    assert (split[0].base, split[1].base) == (one[0], None)
    more = planned([*old[1:], *new, *shards(10, first=4)], split, 25, None)
    assert [(part.name, part.rows) for part in more] == [("part-00000", 10), ("part-00001", 20), ("part-00002", 10)]
    assert more[0].gone.tolist() == [True] * 10 + [False] * 10
    left = planned(new, split, 25, None)
    assert [(part.name, part.base) for part in left] == [("part-00001", split[1])]
    assert [part.name for part in planned(shards(5, first=9), split, 25, None)] == [""]
