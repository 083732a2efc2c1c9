import pyarrow as pa
import pytest

from dim.data import ground_truth, manifest
from dim.errors import UserError
from dim.io import tables


@pytest.fixture
def photos():
    return manifest.checked("m.csv", pa.table({"image_id": ["q", "a", "b", "7"], "path": ["q.jpg"] * 4}))


def write(tmp_path, text):
    path = tmp_path / "truth.csv"
    path.write_text(text)
    return str(path)


def test_rows_are_grouped_by_query_and_grade(tmp_path, photos):
    uri = write(tmp_path, "query_id,image_id,grade\nq,a,good\nq,b,junk\na,b,good\nq,7,good\n")
    truth = ground_truth.read(uri, photos)
    assert truth.images == {"q": {"good": ["a", "7"], "junk": ["b"]}, "a": {"good": ["b"]}}
    assert truth.grades == {"good", "junk"}


def test_parquet_reads_the_same(tmp_path, photos):
    uri = str(tmp_path / "truth.parquet")
    tables.write(uri, pa.table({"query_id": ["q"], "image_id": [7], "grade": ["easy"]}))
    assert ground_truth.read(uri, photos).images == {"q": {"easy": ["7"]}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("query_id,image_id\nq,a\n", "no column 'grade'"),
        ("query_id,image_id,grade\n", "has no row"),
        ("query_id,image_id,grade\nq,a,goood\n", "row 1 has the grade 'goood'; did you mean 'good'"),
        (f"query_id,image_id,grade\nq,a,{'x' * 10**5}\n", "row 1 has the grade 'xxx"),
        ("query_id,image_id,grade\nq,a,\n", "row 1 has the grade None"),
        ("query_id,image_id,grade\nq,x,good\n", "row 1 has the image_id 'x', which 'm.csv' lacks"),
        ("query_id,image_id,grade\nx,a,good\n", "row 1 has the query_id 'x'"),
        ("query_id,image_id,grade\nq,a,good\nq,a,junk\n", "row 2 grades 'a' for 'q' a second time"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, photos, text, said):
    with pytest.raises(UserError, match=r"truth\.csv") as error:
        ground_truth.read(write(tmp_path, text), photos)
    assert said in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_missing_file_is_named(tmp_path, photos):
    with pytest.raises(UserError, match="no file"):
        ground_truth.read(str(tmp_path / "none.csv"), photos)
