"""The importer of ILIAS on a miniature in its layout: folders, boxes, lists, tars, and what may be wrong with each."""

import gzip
import io
import tarfile

import pytest
from PIL import Image

from dim.data import manifest
from dim.data.config import ImportConfig
from dim.data.import_job import import_benchmark
from dim.errors import UserError
from dim.io import tables

QUERIES = "red_bimp_000/query/Q000_00,0.3\nred_bimp_000/query/Q000_01,0.2\nblue_taff_001/query/Q001_00,1\n"
POSITIVES = "red_bimp_000/pos/P000_00,0.0388,13\nblue_taff_001/pos/P001_00,0.1484,58\nblue_taff_001/pos/P001_01,1,0\n"


def photo(colour=0):
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (colour, 90, 200)).save(file, "JPEG")
    return file.getvalue()


def pack(path, names):
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            content = photo(number) if name.endswith(".jpg") else b"text"
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def source(tmp_path):
    top = tmp_path / "ilias"
    for line in (QUERIES + POSITIVES).split():
        path = top / "ilias_core" / f"{line.partition(',')[0]}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo())
    for name, text in {"Q000_00": "3 4 10 12\n20 2 15 6\n", "Q000_01": "0 0 5 5", "Q001_00": "-2 -3 30 20\n"}.items():
        next(top.rglob(f"{name}.jpg")).with_name(f"{name}_bbox.txt").write_text(text)
    (top / "image_ids").mkdir()
    (top / "image_ids" / "image_query_ids.txt").write_text(QUERIES)
    (top / "image_ids" / "positive_ids.txt").write_text(POSITIVES)
    (top / "yfcc100m").mkdir()
    pack(
        top / "yfcc100m" / "0000.tar", [f"{number:08d}.jpg" for number in range(5)] + ["00000000.txt", "00000007.json"]
    )
    pack(top / "yfcc100m" / "0001.tar", [f"./{number:08d}.JPG".replace("JPG", "jpg") for number in range(4)])
    listed = [f"{tar:04d}.tar/{key:08d}" for tar, keys in ((0, 5), (1, 4)) for key in range(keys)]
    (top / "image_ids" / "distractor_ids.txt.gz").write_bytes(gzip.compress("\n".join(listed).encode()))
    (top / "image_ids" / "mini_ilias_yfcc100m_ids.txt").write_text("00000001\n00000003\n00000009\n")
    return top


@pytest.fixture
def imported(source, tmp_path):
    def run(distractors=None, out="out"):
        result = import_benchmark(ImportConfig("ilias", str(source), str(tmp_path / out), distractors=distractors))
        found = manifest.read(str(tmp_path / out / "manifest.parquet"))
        problems = tables.read(str(tmp_path / out / "problems.csv")).to_pylist()
        return result, {row["image_id"]: row for row in found.table.to_pylist()}, problems

    return run


def test_the_whole_layout(imported, source):
    result, rows, problems = imported()
    assert problems == []
    assert result == {
        "layout": "ilias", "images": 6, "photos": 6, "queries": 3, "grades": 0, "missing": 0, "corrupt": 0,
        "distractors": 9, "tars": 2,
    }  # fmt: skip
    assert len(rows) == 15
    query, positive = rows["red_bimp_000/query/Q000_00"], rows["blue_taff_001/pos/P001_00"]
    assert query == {
        "image_id": "red_bimp_000/query/Q000_00", "label": "red_bimp_000", "split": "test", "role": "query",
        "path": str(source / "ilias_core/red_bimp_000/query/Q000_00.jpg"),
        "x1": 3.0, "y1": 2.0, "x2": 35.0, "y2": 16.0, "scale": None, "clutter": None,
    }  # fmt: skip
    assert [rows["blue_taff_001/query/Q001_00"][name] for name in ("x1", "y1", "x2", "y2")] == [0, 0, 28, 17]
    assert [positive[name] for name in ("label", "role", "scale", "clutter", "x1")] == [
        "blue_taff_001", "database", 0.1484, 58.0, None,
    ]  # fmt: skip
    assert rows["0001.tar/00000003"] == {
        "image_id": "0001.tar/00000003", "path": f"{source}/yfcc100m/0001.tar#./00000003.jpg", "label": None,
        "split": "test", "role": "database", **dict.fromkeys(("x1", "y1", "x2", "y2", "scale", "clutter")),
    }  # fmt: skip
    assert [image_id for image_id in rows if ".tar/" in image_id] == [
        f"{tar:04d}.tar/{key:08d}" for tar, keys in ((0, 5), (1, 4)) for key in range(keys)
    ]


def test_the_manifest_is_the_same_from_ray_tasks(imported, ray_session, monkeypatch):
    by_tasks = imported()
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    assert imported(out="threads") == by_tasks


def test_fewer_distractors(imported, source, tmp_path):
    result, rows, problems = imported("5m")
    assert [image_id for image_id in rows if ".tar/" in image_id] == [
        "0000.tar/00000001", "0000.tar/00000003", "0001.tar/00000001", "0001.tar/00000003",
    ]  # fmt: skip
    result, rows, _ = imported("none")
    assert len(rows) == 6 and "distractors" not in result
    (tmp_path / "own").mkdir()
    pack(tmp_path / "own" / "more.tar", ["a/b.c.jpg", "a/b.d.jpg", "x.jpg"])
    result, rows, problems = imported(str(tmp_path / "own"))
    assert [row["path"] for row in rows.values() if ".tar/" in row["image_id"]] == [
        f"{tmp_path}/own/more.tar#a/b.c.jpg", f"{tmp_path}/own/more.tar#x.jpg",
    ]  # fmt: skip
    assert "more.tar/a/b" in rows and "more.tar/x" in rows
    assert problems == [
        {
            "path": f"{tmp_path}/own/more.tar",
            "problem": "1 photos have the name of another one; the first of each is used",
        }
    ]


def test_what_is_missing_or_broken_is_listed_and_keeps_its_rows(imported, source):
    (source / "ilias_core/red_bimp_000/query/Q000_00.jpg").unlink()
    (source / "ilias_core/red_bimp_000/query/Q000_01_bbox.txt").unlink()
    (source / "ilias_core/red_bimp_000/pos/P000_00.jpg").write_bytes(b"no photo")
    first = source / "yfcc100m" / "0000.tar"
    first.write_bytes(first.read_bytes()[: 512 * 9])  # in the middle of a photo
    (source / "yfcc100m" / "0001.tar").unlink()
    result, rows, problems = imported()
    found = {row["path"].removeprefix(f"{source}/"): row["problem"] for row in problems}
    assert found.pop("yfcc100m/0000.tar").startswith("the tar is cut off at byte")
    assert found.pop("ilias_core/red_bimp_000/pos/P000_00.jpg")
    assert found == {
        "ilias_core/red_bimp_000/query/Q000_00.jpg": "no such file",
        "ilias_core/red_bimp_000/query/Q000_01_bbox.txt": "no such file",
        "yfcc100m/0001.tar": "no such file",
    }
    assert (result["missing"], result["corrupt"], result["tars"]) == (3, 2, 2)
    assert 0 < result["distractors"] < 5 and len(rows) == 6 + result["distractors"]
    assert rows["red_bimp_000/query/Q000_01"]["x1"] is None


def test_a_tar_with_fewer_photos_than_listed_is_told(imported, source):
    pack(source / "yfcc100m" / "0001.tar", ["00000000.jpg"])
    assert imported()[2] == [
        {"path": f"{source}/yfcc100m/0001.tar", "problem": "the tar has 1 of the 4 photos that are listed"}
    ]
    (source / "image_ids" / "distractor_ids.txt.gz").unlink()
    assert imported()[2] == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("image_ids/positive_ids.txt", "a/pos/P_0,0.5\n", "line 1: expected id,scale,clutter, got 'a/pos/P_0,0.5'"),
        ("image_ids/positive_ids.txt", "a/pos/P_0,large,3\n", "line 1: expected id,scale,clutter"),
        ("image_ids/image_query_ids.txt", "", "names no photo"),
        ("image_ids/image_query_ids.txt", b"\xff\xfe", "is not UTF-8 text"),
        ("ilias_core/red_bimp_000/query/Q000_00_bbox.txt", "1 2 3\n", "line 1: expected x y width height, got '1 2 3'"),
        ("ilias_core/red_bimp_000/query/Q000_00_bbox.txt", "\n", "holds no box"),
        ("image_ids/distractor_ids.txt.gz", "text", "cannot read the ids in"),
    ],
)  # fmt: skip
def test_a_malformed_list_is_refused(imported, source, name, content, message):
    (source / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        imported()
    assert not (source.parent / "out").exists()


def test_missing_tars_and_lists_are_told(imported, source, tmp_path):
    with pytest.raises(
        UserError, match=r"'nowhere' holds no \.tar; download the distractors, or give --distractors none"
    ):
        imported("nowhere")
    (source / "image_ids" / "mini_ilias_yfcc100m_ids.txt").unlink()
    with pytest.raises(UserError, match=r"no file .*mini_ilias_yfcc100m_ids\.txt"):
        imported("5m")
    with pytest.raises(UserError, match=r"--distractors is for import\.py ilias, not for 'cub'"):
        ImportConfig("cub", "source", "out", distractors="5m")
    for tar in (source / "yfcc100m").iterdir():
        tar.write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"none of the 2 tars has a photo; .*0000\.tar': the tar is cut off"):
        imported()
    assert not (tmp_path / "out" / "manifest.parquet").exists()
