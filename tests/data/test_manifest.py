"""The manifest: what is accepted, what is refused and how it is named."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim.data import manifest as manifests
from dim.errors import UserError
from dim.io import files, tables


def checked(**columns):
    return manifests.checked("photos.csv", pa.table(columns))


@pytest.fixture
def read(tmp_path):
    def of(text):
        (tmp_path / "photos.csv").write_text(text)
        return manifests.read(str(tmp_path / "photos.csv"))

    return of


def test_everything_that_a_manifest_may_have(read, tmp_path):
    found = read(
        "image_id,path,label,split,role,x1,y1,x2,y2,shop\n"
        "007,a/1.jpg,milk,train,,,,,,3\n"
        "b,/abs/2.jpg,,test,query,1,2.5,30,40,\n"
        "c,s3://bucket/3.jpg,tea,,database,,,,,x\n"
    )
    assert len(found) == 3
    assert found.image_ids.tolist() == ["007", "b", "c"]
    assert found.labels.tolist() == ["milk", None, "tea"]
    assert found.paths == [f"{tmp_path}/a/1.jpg", "/abs/2.jpg", "s3://bucket/3.jpg"]
    assert found.boxes == [None, (1.0, 2.5, 30.0, 40.0), None]
    assert found.table["shop"].to_pylist() == ["3", None, "x"]
    assert list(found.splits()) == ["train", "test"]
    assert found.select("train").image_ids.tolist() == ["007"]
    assert found.select(role="query").image_ids.tolist() == ["007", "b"]
    assert found.select("test", "query").image_ids.tolist() == ["b"]


def test_numbers_as_ids_and_labels_are_text():
    found = checked(image_id=[7, 8], path=["a", "b"], label=[1, None])
    assert found.image_ids.tolist() == ["7", "8"] and found.labels.tolist() == ["1", None]
    assert found.table["split"].to_pylist() == [None, None]
    assert found.boxes == [None, None]


def test_paths_don_t_depend_on_the_working_directory(read, monkeypatch, tmp_path):
    read("image_id,path\na,x/1.jpg\n")
    monkeypatch.chdir(tmp_path)
    found = manifests.read("photos.csv").paths
    monkeypatch.chdir("/")
    assert found == [f"{tmp_path}/x/1.jpg"]


def test_rows_can_be_selected_whatever_the_other_columns():
    more = {"view": pa.array(["x", "y"], pa.string_view()), "list": [[1], [2]]}
    found = checked(image_id=["a", "b"], path=["1", "2"], split=["val", None], **more).select("val")
    assert (found.table["view"].to_pylist(), found.table["list"].to_pylist()) == (["x"], [[1]])


TWO = {"image_id": ["a", "b"], "path": ["1", "2"]}
BOXES = TWO | {"x1": [0, 0], "y1": [0, 0], "x2": [9, 9], "y2": [9, 9]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image_id": ["a"]}, "has no column 'path'; it has 'image_id'"),
        ({"path": ["a"], "x": [1]}, "has no column 'image_id'; it has 'path', 'x'"),
        ({"image_id": [], "path": []}, "has no row"),
        (TWO | {"image_id": ["a", None]}, "row 2 has no image_id"),
        (TWO | {"image_id": ["", "b"]}, "row 1 has no image_id"),
        (TWO | {"path": ["1", None]}, "row 2 has no path"),
        (TWO | {"image_id": [None, "b"], "path": [None, "2"]}, "row 1 has no path"),
        (TWO | {"view": pa.array([b"\xff", b""], pa.binary_view())}, "column 'view' must be text: Invalid UTF8"),
        (TWO | {"split": ["train", "d" * 10**6]}, "unknown split 'ddd"),
        (TWO | {"image_id": ["a", "a"]}, r"image_id 'a' occurs more than once \(1 such ids\)"),
        (TWO | {"split": ["train", "dev"]}, "unknown split 'dev'; use train, val, test or leave it empty"),
        (TWO | {"role": ["query", "index"]}, "unknown role 'index'; use query, database or leave it empty"),
        (TWO | {"x1": [1, 1], "y1": [1, 1]}, "has x1, y1 but a box needs x1, y1, x2, y2"),
        (BOXES | {"x1": ["left", "2"]}, "column x1 must be numbers"),
        (BOXES | {"x1": [0, 9]}, "image_id 'b' has an empty box"),
        (BOXES | {"y2": [9, -1]}, "image_id 'b' has an empty box"),
        (BOXES | {"y1": [0, None]}, "image_id 'b' has an incomplete box"),
        (BOXES | {"x1": [0, float("nan")]}, "image_id 'b' has an incomplete box"),
        (BOXES | {"x2": [9, float("inf")]}, "image_id 'b' has a box with an infinite corner"),
        (TWO | {"image_id": ["a", " "]}, "row 2 has no image_id"),
        (TWO | {"image_id": [7.0, float("nan")]}, "row 2 has no image_id"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(columns, message):
    with pytest.raises(UserError, match=message) as error:
        checked(**columns)
    assert "'photos.csv'" in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_selection_of_nothing_names_what_there_is(read):
    found = read("image_id,path,split,role\na,1,train,query\nb,2,,query\n")
    with pytest.raises(UserError, match="has no row with split 'val'; its splits are empty, train"):
        found.select("val")
    with pytest.raises(UserError, match="has no row with split 'train' and role 'database'"):
        found.select("train", "database")


def test_a_manifest_that_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"no file '.*none\.parquet'"):
        manifests.read(str(tmp_path / "none.parquet"))


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1).filter(lambda text: text.strip())


@settings(deadline=None, max_examples=50)
@given(ids=st.lists(TEXT, min_size=1, unique=True), data=st.data())
def test_csv_and_parquet_hold_the_same(tmp_path_factory, ids, data):
    labels = data.draw(st.lists(st.none() | TEXT, min_size=len(ids), max_size=len(ids)))
    table = pa.table(
        {"image_id": ids, "path": [f"{row}.jpg" for row in range(len(ids))], "label": pa.array(labels, pa.string())}
    )
    folder = str(tmp_path_factory.mktemp("manifests"))
    for ending in (".csv", ".parquet"):
        uri = files.join(folder, f"m{ending}")
        tables.write(uri, table)
        found = manifests.read(uri)
        assert found.image_ids.tolist() == ids and found.labels.tolist() == labels
        assert found.paths == [files.join(folder, f"{row}.jpg") for row in range(len(ids))]


NAMES = ("a.jpg", "x y/b%20.jpg", "/abs/c.jpg", "s3://b/k", "file:///q%20/x", "ü/é.png", "t.tar#m ü.jpg", "~/x")


@pytest.mark.parametrize(
    "uri",
    ("photos.csv", "/data/m.csv", "/m.csv", "file:///da%20ta/m.csv", "file:///m.csv", "s3://bucket/x/m.csv"),
)
def test_all_paths_are_resolved_as_one_is(uri):
    table = pa.table({"image_id": pa.chunked_array([NAMES[:3], NAMES[3:]]), "path": NAMES})
    folder = files.parent(files.absolute(uri))
    assert manifests.checked(uri, table).paths == [files.join(folder, name) for name in NAMES]


@given(st.lists(st.lists(st.sampled_from([None, "a", "b", "c"]))))
def test_codes_number_the_values_in_the_order_in_which_they_occur(chunks):
    labels = pa.chunked_array(chunks, pa.string())
    known = {}
    expected = [-1 if label is None else known.setdefault(label, len(known)) for label in labels.to_pylist()]
    found = manifests.Manifest("photos.csv", pa.table({"label": labels})).codes("label")
    assert found.dtype == "int32" and found.tolist() == expected
