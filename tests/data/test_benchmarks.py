"""Each importer on a small tree in the benchmark's layout, made of the demo photos, and on the official files."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import messages

from dim.data import grocery, ground_truth, manifest
from dim.data.benchmarks import photos_by_stem
from dim.data.config import LAYOUTS, ImportConfig
from dim.data.decode import decode
from dim.data.import_job import IMPORTERS, import_benchmark
from dim.data.oxford_paris import oxford5k, roxford5k
from dim.errors import UserError
from dim.io import tables


@pytest.fixture
def tree(tmp_path, demo):
    """Makes files in the folder of a set: text, bytes, an object to pickle, or None for one of the demo photos."""
    photos = sorted(demo.glob("*/*.jpg"))

    def make(contents):
        for number, (name, content) in enumerate(contents.items()):
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                shutil.copy(photos[number], path)
            elif isinstance(content, str):
                path.write_text(content)
            else:
                path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=3))
        return tmp_path / "set"

    return make


class Imported:
    """What an import wrote, read back by the readers that the other jobs use."""

    def __init__(self, layout, source):
        out = source.parent / "imported"
        self.result = import_benchmark(ImportConfig(layout, str(source), str(out)))
        self.manifest = manifest.read(str(out / "manifest.parquet"))
        truth = out / "ground_truth.parquet"
        self.images = ground_truth.read(str(truth), self.manifest).images if truth.exists() else None
        self.problems = tables.read(str(out / "problems.csv")).to_pylist()
        assert json.loads((out / "result.json").read_text()) == self.result
        broken = {Path(row["path"]) for row in self.problems}
        for path, box in zip(self.manifest.paths, self.manifest.boxes, strict=True):
            if Path(path) not in broken:
                decode(Path(path).read_bytes(), 64, "long-side", box)

    def column(self, name):
        return dict(zip(self.manifest.image_ids, self.manifest.table[name].to_pylist(), strict=True))


OXFORD = {
    "all_souls_000013.jpg": None,
    "all_souls_000026.jpg": None,
    "oxford_002985.jpg": None,
    "deeper/oxford_000001.JPG": None,
    "gt/all_souls_1_query.txt": "oxc1_all_souls_000013 13.5 4.1 64.5 95.7\n",
    "gt/all_souls_1_good.txt": "all_souls_000013\nall_souls_000026\nall_souls_000026\n",
    "gt/all_souls_1_ok.txt": "oxford_002985\n",
    "gt/all_souls_1_junk.txt": "",
    "README.txt": "as distributed",
}


def test_oxford5k(tree):
    imported = Imported("oxford5k", tree(OXFORD))
    assert imported.column("role") == {
        "all_souls_1": "query",
        "all_souls_000013": "database",
        "all_souls_000026": "database",
        "oxford_000001": "database",
        "oxford_002985": "database",
    }
    assert imported.manifest.boxes == [(13.5, 4.1, 64.5, 95.7), None, None, None, None]
    assert imported.column("path")["all_souls_1"] == imported.column("path")["all_souls_000013"]
    assert imported.images == {
        "all_souls_1": {"good": ["all_souls_000013", "all_souls_000026"], "ok": ["oxford_002985"]}
    }
    counts = {"images": 5, "photos": 4, "queries": 1, "grades": 3, "missing": 0, "corrupt": 0}
    assert imported.result == {"layout": "oxford5k", **counts}


def test_paris6k_has_corrupt_files_and_a_missing_one(tree, caplog):
    contents = {
        "paris/defense/paris_defense_000605.jpg": None,
        "paris/louvre/paris_louvre_000136.jpg": "<!DOCTYPE HTML>\n<title>302 Found</title>",
        "paris/louvre/paris_louvre_000137.jpg": None,
        "defense_1_query.txt": "paris_defense_000605 0 1 50 60",
        "defense_1_good.txt": "paris_defense_000605\n\n",
        "defense_1_ok.txt": "paris_gone_000001\nparis_louvre_000137\n",
        "defense_1_junk.txt": "paris_louvre_000136\nparis_louvre_000137\n",
    }
    source = tree(contents)
    imported = Imported("paris6k", source)
    problems = {Path(row["path"]).relative_to(source).as_posix(): row["problem"] for row in imported.problems}
    assert problems["paris_gone_000001.jpg"] == "no such file"
    assert "photos that could not be read: 2 (1 × no photo in a known format: it begins with b'<!DOCTYPE" in caplog.text
    assert "1 × no such file); see " in caplog.text and "problems.csv" in caplog.text
    assert "<!DOCTYPE" in problems["paris/louvre/paris_louvre_000136.jpg"]
    assert (imported.result["missing"], imported.result["corrupt"]) == (1, 1)
    # Both keep their rows; an image that is junk and ok is junk.
    assert imported.images["defense_1"] == {
        "good": ["paris_defense_000605"],
        "ok": ["paris_gone_000001"],
        "junk": ["paris_louvre_000136", "paris_louvre_000137"],
    }


@pytest.mark.parametrize("layout", ["roxford5k", "rparis6k"])
def test_revisited(tree, layout):
    entry = {"bbx": [3.5, 4, 50, 60.5], "easy": [2], "hard": [0], "junk": [1]}
    gnd = {"imlist": ["a", "b", "c"], "qimlist": ["q", "r"], "gnd": [entry, {**entry, "hard": [], "junk": []}]}
    source = tree({f"jpg/{name}.jpg": None for name in "abqr"} | {f"gnd_{layout}.pkl": gnd})
    imported = Imported(layout, source)
    assert imported.column("role") == dict.fromkeys("qr", "query") | dict.fromkeys("abc", "database")
    assert imported.manifest.boxes[:3] == [(3.5, 4, 50, 60.5)] * 2 + [None]
    assert imported.images == {"q": {"easy": ["c"], "hard": ["a"], "junk": ["b"]}, "r": {"easy": ["c"]}}
    assert imported.problems == [{"path": str(source / "jpg" / "c.jpg"), "problem": "no such file"}]


def test_holidays(tree):
    names = ["jpg/100000.jpg", "jpg/100001.jpg", "jpg/100100.jpg", "jpg/100201.jpg", "jpg/100202.jpg", "jpg/other.jpg"]
    imported = Imported("holidays", tree(dict.fromkeys(names)))
    assert imported.column("label") == {
        "100000": "1000",
        "100001": "1000",
        "100100": "1001",
        "100200": "1002",
        "100201": "1002",
        "100202": "1002",
    }
    assert [image for image, role in imported.column("role").items() if role is None] == ["100000", "100100", "100200"]
    assert set(imported.column("role").values()) == {None, "database"}
    assert set(imported.column("split").values()) == {"test"}
    assert [Path(row["path"]).name for row in imported.problems] == ["100200.jpg"]
    assert imported.images is None


def test_ukbench(tree):
    imported = Imported("ukbench", tree({f"full/ukbench{number:05d}.jpg": None for number in (0, 1, 2, 3, 8, 9, 10)}))
    labels = imported.column("label")
    assert [labels[f"ukbench{number:05d}"] for number in (0, 1, 2, 3, 8, 9, 10, 11)] == ["0000"] * 4 + ["0002"] * 4
    assert len(labels) == imported.result["queries"] == 8
    assert [Path(row["path"]).name for row in imported.problems] == ["ukbench00011.jpg"]


GLDV2 = {
    "index.csv": "id\n0123456789abcdef\n0a23456789abcdef\nb123456789abcdef\n",
    "test.csv": "id\nq123456789abcdef\np123456789abcdef\ni123456789abcdef\n",
    "retrieval_solution_v2.1.csv": "id,images,Usage\n"
    "q123456789abcdef,0123456789abcdef b123456789abcdef,Private\n"
    "i123456789abcdef,None,Ignored\n"
    "p123456789abcdef,0a23456789abcdef,Public\n",
    "index/0/1/2/0123456789abcdef.jpg": None,
    "index/0/a/2/0a23456789abcdef.jpg": None,
    "index/b/1/2/b123456789abcdef.jpg": None,
    "test/q/1/2/q123456789abcdef.jpg": None,
    "test/p/1/2/p123456789abcdef.jpg": None,
}


def test_gldv2(tree):
    imported = Imported("gldv2", tree(GLDV2))
    assert imported.images == {
        "q123456789abcdef": {"good": ["0123456789abcdef", "b123456789abcdef"]},
        "p123456789abcdef": {"good": ["0a23456789abcdef"]},
    }
    assert imported.column("split")["q123456789abcdef"] == "test"
    assert imported.column("split")["p123456789abcdef"] == "val"
    assert imported.column("role")["b123456789abcdef"] == "database"
    counts = {"images": 5, "photos": 5, "queries": 2, "grades": 3, "missing": 0, "corrupt": 0}
    assert imported.result == {"layout": "gldv2", **counts}


SOP = {
    "Ebay_train.txt": "image_id class_id super_class_id path\n"
    "1 1 1 bicycle_final/111_0.JPG\n2 1 1 bicycle_final/111_1.JPG",
    "Ebay_test.txt": "image_id class_id super_class_id path\n3 11319 1 bicycle_final/222_0.JPG\n",
    "bicycle_final/111_0.JPG": None,
    "bicycle_final/111_1.JPG": None,
    "bicycle_final/222_0.JPG": None,
}


def test_sop(tree):
    imported = Imported("sop", tree(SOP))
    names = ["bicycle_final/111_0", "bicycle_final/111_1", "bicycle_final/222_0"]
    assert imported.column("label") == dict(zip(names, ["1", "1", "11319"], strict=True))
    assert imported.column("split") == dict(zip(names, ["train", "train", "test"], strict=True))
    assert (imported.result["queries"], imported.problems, imported.images) == (1, [], None)


CUB = {
    "images.txt": "1 001.Albatross/A_1.jpg\n2 100.Pelican/P_2.jpg\n3 101.White_Pelican/W_3.jpg\n",
    "image_class_labels.txt": "1 1\n2 100\n3 101\n",
    "classes.txt": "1 001.Albatross\n100 100.Pelican\n101 101.White_Pelican\n",
    "images/001.Albatross/A_1.jpg": None,
    "images/100.Pelican/P_2.jpg": None,
    "images/101.White_Pelican/W_3.jpg": None,
}


def test_cub(tree):
    imported = Imported("cub", tree(CUB))
    assert list(imported.column("label").values()) == ["001.Albatross", "100.Pelican", "101.White_Pelican"]
    assert list(imported.column("split").values()) == ["train", "train", "test"]
    assert imported.problems == []


GROCERY = {
    "train.txt": "train/Fruit/Apple/Golden-Delicious/A_1.jpg, 0, 0\ntrain/Fruit/Kiwi/K_2.jpg, 7, 3\n\n",
    "val.txt": "val/Fruit/Kiwi/K_1.jpg, 7, 3\n",
    "test.txt": "test/Packages/Milk, fresh/Zucchini/Z_1.jpg, 80, 42",
    "train/Fruit/Apple/Golden-Delicious/A_1.jpg": None,
    "train/Fruit/Kiwi/K_2.jpg": None,
    "val/Fruit/Kiwi/K_1.jpg": None,
    "test/Packages/Milk, fresh/Zucchini/Z_1.jpg": None,
}


@pytest.mark.parametrize(
    ("layout", "splits"),
    [("grocery", ["train", "val", "val", "test"]), ("grocery-lists", ["train", "train", "val", "test"])],
)
def test_grocery(tree, layout, splits):
    imported = Imported(layout, tree(GROCERY))
    assert list(imported.column("label").values()) == ["Golden-Delicious", "Kiwi", "Kiwi", "Zucchini"]
    assert list(imported.column("split").values()) == splits
    assert imported.problems == []


def test_the_demo_s_products_keep_their_splits_in_the_whole_set(demo):
    rows = manifest.read(str(demo / "manifest.csv"))
    for label, split in zip(rows.labels, rows.table["split"].to_pylist(), strict=True):
        assert split == ("val" if label in grocery.VAL else "test" if label in grocery.TEST else "train")
    assert (len(grocery.VAL), len(grocery.TEST)) == (12, 29)


@pytest.mark.parametrize(
    ("layout", "contents", "message"),
    [
        ("oxford5", OXFORD, "unknown layout 'oxford5'; did you mean 'oxford5k'?"),
        ("oxford5k", {"a.jpg": None}, r"holds no \*_query.txt"),
        ("oxford5k", {k: v for k, v in OXFORD.items() if v is not None}, "holds no photo"),
        ("oxford5k", OXFORD | {"copy/oxford_002985.jpg": None}, "'oxford_002985' twice"),
        ("oxford5k", OXFORD | {"gt/all_souls_1_query.txt": "x 1 2 3\n"}, "query.txt', line 1: expected 5 words"),
        ("oxford5k", OXFORD | {"gt/all_souls_1_query.txt": "x 1 2 3 four\n"}, "line 1: a box is four numbers"),
        ("oxford5k", OXFORD | {"gt/all_souls_1_query.txt": ""}, "query.txt: expected one line"),
        ("oxford5k", OXFORD | {"gt/all_souls_1_query.txt": "a 9 9 9 20\n"}, "empty box"),
        ("oxford5k", OXFORD | {"gt/all_souls_1_good.txt": "a\n\nb c\n"}, "good.txt', line 3: expected 1 words"),
        ("oxford5k", OXFORD | {"gt/all_souls_2_query.txt": "a 1 2 3 4"}, "no file .*all_souls_2_junk.txt"),
        ("roxford5k", {"jpg/a.jpg": None}, "no file .*gnd_roxford5k.pkl"),
        ("roxford5k", {"a.jpg": None, "gnd_roxford5k.pkl": {"imlist": []}}, "KeyError.*qimlist"),
        ("roxford5k", {"a.jpg": None, "gnd_roxford5k.pkl": [1]}, "is not the ground truth"),
        ("holidays", {"other.jpg": None}, "holds no photo"),
        ("ukbench", {"ukbench1.jpg": None}, "holds no photo"),
        ("gldv2", {"index.csv": "id\n0123\n"}, "must hold one retrieval_solution"),
        ("gldv2", GLDV2 | {"retrieval_solution_v1.csv": ""}, "must hold one retrieval_solution"),
        ("gldv2", GLDV2 | {"index.csv": "name\n1\n"}, "index.csv' has no column 'id'"),
        ("gldv2", GLDV2 | {"index.csv": "id\n0a23456789abcdef\n"}, "line 2: image '0123456789abcdef' is not in index"),
        ("gldv2", GLDV2 | {"retrieval_solution_v2.1.csv": "id,images,Usage\na,b,No\n"}, "line 2: Usage is 'No'"),
        ("gldv2", GLDV2 | {"retrieval_solution_v2.1.csv": "id,images,Usage\na,b\n"}, "cannot read the table"),
        ("sop", {"Ebay_train.txt": SOP["Ebay_train.txt"]}, "no file .*Ebay_test.txt"),
        ("sop", {k: v for k, v in SOP.items() if v is not None}, "none of the 3 photos"),
        ("sop", SOP | {"Ebay_test.txt": "header\n1 2 3\n"}, "Ebay_test.txt', line 2: expected 4 words"),
        ("cub", CUB | {"image_class_labels.txt": "1 1\n"}, "images.txt', line 2: image '2' has the class ''"),
        ("cub", CUB | {"image_class_labels.txt": "1 " + "9" * 5000, "classes.txt": "9" * 5000 + " x"}, "class '999"),
        ("cub", {"image_class_labels.txt/a.txt": ""}, "cannot read .*class_labels.txt"),
        ("sop", SOP | {"Ebay_test.txt": "\n1 2 " + "3" * 10**6}, "line 2: expected 4 words, got '1 2 33"),
        ("cub", CUB | {"images.txt": "1 a b\n"}, "images.txt', line 1: expected 2 words"),
        ("grocery", GROCERY | {"val.txt": "\nval/Kiwi/K_1.jpg 7, 3"}, "val.txt', line 2: expected a path below val/"),
        ("grocery", GROCERY | {"test.txt": "K_1.jpg, 7, 3"}, "test.txt', line 1: expected a path below test/"),
        ("grocery-lists", {"train.txt": GROCERY["train.txt"]}, "no file .*val.txt"),
    ],
)
def test_a_malformed_set_is_one_clear_line_and_nothing_is_written(tree, layout, contents, message):
    source = tree(contents)
    with pytest.raises(UserError, match=message) as caught:
        Imported(layout, source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert not (source.parent / "imported").exists()


def test_each_layout_has_its_importer():
    assert tuple(IMPORTERS) == LAYOUTS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_folder(tmp_path, layout):
    with pytest.raises(UserError, match="no f"):
        import_benchmark(ImportConfig(layout, str(tmp_path / "none"), str(tmp_path / "out")))


def test_a_pickle_that_calls_is_refused(tree, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'proof'}",)

    source = tree({"jpg/a.jpg": None, "gnd_roxford5k.pkl": {"imlist": ["a"], "qimlist": [], "gnd": Payload()}})
    with pytest.raises(UserError, match="only built-in types are allowed"):
        Imported("roxford5k", source)
    assert not (tmp_path / "proof").exists()


ENTRY = {"bbx": [1, 2, 3, 4], "easy": [], "hard": [], "junk": []}


def unfolding(depth, width):
    """A list that is small in a pickle, and of `width ** depth` when it is written out."""
    nested = "x"
    for _ in range(depth):
        nested = [nested] * width
    return nested


@pytest.mark.parametrize(
    "change",
    [
        *({"gnd": [ENTRY | part]} for part in ({"bbx": [1, 2, 3]}, {"bbx": "abcd"}, {"bbx": ["x" * 10**6, 2, 3, 4]})),
        *(
            {"gnd": [ENTRY | {"easy": positions}]}
            for positions in ([3], [-1], None, ["x"], [float("inf")], ["9" * 5000])
        ),
        *({"imlist": [name]} for name in (7, unfolding(9, 12), "\udcff", "x" * 10**6)),
        {"imlist": ["a", "a"]},
        {"qimlist": ["q", "r"]},
        {"qimlist": ["q", "r"], "gnd": [ENTRY | {"easy": [0] * 600_000}] * 2},
    ],
    ids=lambda change: str(next(iter(change))),
)
def test_a_pickle_with_wrong_contents_is_refused(tree, change):
    gnd = {"imlist": ["a", "b", "c"], "qimlist": ["q"], "gnd": [ENTRY]} | change
    with pytest.raises(UserError, match=r"gnd_rparis6k.pkl") as caught:
        Imported("rparis6k", tree({"jpg/a.jpg": None, "gnd_rparis6k.pkl": pickle.dumps(gnd, protocol=4)}))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_pickle_with_a_name_that_nests_deep_is_refused(tree):
    nested = b"\x80\x04}(\x8c\x06imlist]" + b"]" * 100_000 + b"a" * 100_000 + b"\x8c\x07qimlist]\x8c\x03gnd]u."
    with pytest.raises(UserError, match="not a photo's name"):
        Imported("rparis6k", tree({"jpg/a.jpg": None, "gnd_rparis6k.pkl": nested}))


def test_an_import_again_takes_the_place_of_the_first(tree):
    source = tree(OXFORD | {"100000.jpg": None})
    assert Imported("oxford5k", source).images
    assert Imported("holidays", source).images is None


def test_the_official_oxford5k_files(shared, tmp_path, demo):
    shutil.copytree(shared("oracle/groundtruth/oxford5k"), tmp_path / "set")
    shutil.copy(next(demo.glob("*/*.jpg")), tmp_path / "set" / "all_souls_000013.jpg")
    benchmark = oxford5k(str(tmp_path / "set"))
    queries = [photo for photo in benchmark.photos if photo.role == "query"]
    assert len(queries) == 55
    assert (queries[0].image_id, queries[0].box) == ("all_souls_1", (136.5, 34.1, 648.5, 955.7))
    expected = set()
    for path in (tmp_path / "set").glob("*.txt"):
        query, grade = re.fullmatch(r"(\w+)_(good|ok|junk|query)", path.stem).groups()
        expected |= {(query, line, grade) for line in path.read_text().split() if grade != "query"}
    assert set(benchmark.grades) == expected
    assert len(benchmark.grades) == len(expected)
    database = {photo.image_id for photo in benchmark.photos if photo.role == "database"}
    assert {image for _, image, _ in expected} <= database


def test_the_official_roxford5k_pickle(shared, tmp_path, demo):
    (tmp_path / "jpg").mkdir()
    shutil.copy(next(demo.glob("*/*.jpg")), tmp_path / "jpg" / "all_souls_000013.jpg")
    shutil.copy(shared("oracle/groundtruth/gnd_roxford5k.pkl"), tmp_path)
    benchmark = roxford5k(str(tmp_path))
    assert [photo.role for photo in benchmark.photos].count("query") == 70
    assert [photo.role for photo in benchmark.photos].count("database") == 4993
    query = benchmark.photos[0]
    assert (query.image_id, query.box) == ("all_souls_000013", (136.5, 34.1, 648.5, 955.7))
    with (tmp_path / "gnd_roxford5k.pkl").open("rb") as file:
        official = pickle.load(file)
    first = {(official["imlist"][i], grade) for grade in ("easy", "hard", "junk") for i in official["gnd"][0][grade]}
    assert {(image, grade) for name, image, grade in benchmark.grades if name == "all_souls_000013"} == first
    assert len({(name, image) for name, image, _ in benchmark.grades}) == len(benchmark.grades)


def test_the_official_names_of_holidays(shared):
    names = shared("oracle/groundtruth/holidays_images.dat").read_text().split()
    found = photos_by_stem("", names, r"\d{6}")
    assert len(found) == 1491
    assert sum(name.endswith("00") for name in found) == len({name[:4] for name in found}) == 500


def test_the_job(tree, tmp_path):
    job = Path(__file__).resolve().parents[2] / "jobs" / "import.py"

    def run(*arguments):
        return subprocess.run([sys.executable, job, *arguments], capture_output=True, text=True, check=False)

    done = run("oxford5k", tree(OXFORD), "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["queries"] == 1
    assert "was published with 5063 photos; this copy has 4" in done.stderr
    failed = run("oxfrod5k", tmp_path, "--out", tmp_path / "out")
    assert failed.returncode == 2
    assert messages(failed.stderr) == ["error: unknown layout 'oxfrod5k'; did you mean 'oxford5k'?"]


def test_an_import_that_was_killed_between_its_files_is_refused_and_a_corrected_manifest_is_not(tree, monkeypatch):
    source = tree(OXFORD)
    Imported("oxford5k", source)
    out = source.parent / "imported"
    uri, truth = str(out / "manifest.parquet"), str(out / "ground_truth.parquet")
    photos = manifest.read(uri)
    corrected = photos.table.set_column(photos.table.column_names.index("label"), "label", [["hall"] * len(photos)])
    tables.write(uri, corrected)
    assert manifest.read(uri).labels[0] == "hall" and ground_truth.read(truth, photos)
    write = tables.write

    def dying(uri, table):
        if uri == truth:
            raise ZeroDivisionError
        write(uri, table)

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(tables, "write", dying)
        import_benchmark(ImportConfig("oxford5k", str(source), str(out)))
    for read in (lambda: manifest.read(uri), lambda: ground_truth.read(truth, photos)):
        with pytest.raises(UserError, match=r"imported' was never finished; run import\.py again"):
            read()
    assert Imported("oxford5k", source).manifest.table == photos.table
