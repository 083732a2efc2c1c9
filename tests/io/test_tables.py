"""Tables as other programs write them: they are read, or refused with what to do."""

import gzip
import io
import zipfile

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from dim.errors import UserError
from dim.io import tables

ROWS = {"path": ["å/1.jpg", "b, c.jpg", "007"], "label": ["é", "a;b", None]}
TEXT = 'path,label\nå/1.jpg,é\n"b, c.jpg",a;b\n007,\n'


def delimited(mark):
    return TEXT.replace('"b, c.jpg"', "\0").replace("a;b", '"a;b"').replace(",", mark).replace("\0", '"b, c.jpg"')


READ = {
    "plain.csv": TEXT.encode(),
    "upper.CSV": TEXT.encode(),
    "bom.csv": TEXT.encode("utf-8-sig"),
    "utf-16.csv": TEXT.encode("utf-16"),
    "utf-16-be.csv": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "utf-32.csv": TEXT.encode("utf-32"),
    "excel.txt.csv": delimited("\t").encode("utf-16"),
    "semicolon.csv": delimited(";").encode(),
    "semicolon-bom.csv": delimited(";").encode("utf-8-sig"),
    "crlf.csv": delimited(";").replace("\n", "\r\n").encode(),
    "tab.csv": delimited("\t").encode(),
    "tab.tsv": delimited("\t").encode(),
}


@pytest.mark.parametrize("name", READ)
def test_text_that_is_read(tmp_path, name):
    (tmp_path / name).write_bytes(READ[name])
    assert tables.read(str(tmp_path / name)).to_pydict() == ROWS


def test_a_cell_of_several_lines_and_a_quotation_mark_within_one(tmp_path):
    (tmp_path / "a.csv").write_text('path,label\n1.jpg,"two\nlines ""so"""\n2.jpg,5" pipe\n')
    labels = ['two\nlines "so"', '5" pipe']
    assert tables.read(str(tmp_path / "a.csv")).to_pydict() == {"path": ["1.jpg", "2.jpg"], "label": labels}


def test_a_comma_in_the_header_of_a_tsv(tmp_path):
    (tmp_path / "a.tsv").write_text("path\tlabel, old\n1.jpg\tmilk\n")
    assert tables.read(str(tmp_path / "a.tsv")).to_pydict() == {"path": ["1.jpg"], "label, old": ["milk"]}


def zipped():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("xl/workbook.xml", "")
    return content.getvalue()


REFUSED = {
    "latin-1.csv": (TEXT.encode("latin-1"), "byte 0xe5 in line 2 is not UTF-8; save it as UTF-8"),
    "cut.csv": (TEXT.encode("utf-16")[:-1], "byte 0xa in line 4 is not UTF-16"),
    "no-mark.csv": (
        TEXT.encode("ascii", "ignore").decode().encode("utf-16-le"),
        "its header has NULs in it, as UTF-16 has; save it as UTF-8",
    ),
    "book.csv": (zipped(), "it is an Excel workbook or another zip archive; save its sheet as 'CSV UTF-8'"),
    "old-book.csv": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "it is an Excel workbook; save its sheet as 'CSV UTF-8'"),
    "gzip.csv": (gzip.compress(TEXT.encode()), "it is compressed; unpack it first, with gunzip"),
    "parquet.csv": (b"PAR1", "it is Parquet; let its name end in .parquet"),
    "book.xlsx": (zipped(), "is neither .parquet nor .csv but a spreadsheet's own file; save its sheet"),
    "a.csv.gz": (gzip.compress(TEXT.encode()), "but compressed; unpack it first"),
    "a.jsonl": (b"{}", "but JSON; make a table of it, as pandas.read_json"),
    "a.feather": (b"", "but Arrow's; make it Parquet"),
    "a.txt": (b"", "is neither .parquet nor .csv; give it one of these endings"),
    "open.csv": (b'path,label\n1.jpg,"a"\n2.jpg,"b\n3.jpg,c\n', "a quotation mark in line 3 is not closed in its cell"),
    "stray.tsv": (
        b'path\tlabel\n1.jpg\t"a\n2.jpg\t"b\n3.jpg\tc\n',
        "a quotation mark in line 2 is not closed in its cell",
    ),
    "empty.csv": (b"", "cannot read the table .*: Empty CSV file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_what_to_do(tmp_path, name):
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        tables.read(str(tmp_path / name))
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["parts.parquet", "parts.csv"])
def test_a_folder_is_no_table(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"is a folder; name one table; to join Parquet parts, run pyarrow\.parquet"):
        tables.read(str(tmp_path / name))


def test_a_folder_in_a_store_is_no_table(s3):
    bucket = s3.bucket("parts")
    tables.write(f"{bucket}/a.parquet/part-0.parquet", pa.table(ROWS))
    with pytest.raises(UserError, match="is a folder; name one table"):
        tables.read(f"{bucket}/a.parquet")
    with pytest.raises(UserError, match="no file"):
        tables.read(f"{bucket}/b.parquet")


ENCODINGS = {
    "dictionary": {},
    "plain": {"use_dictionary": False},
    "delta length": {"use_dictionary": False, "column_encoding": "DELTA_LENGTH_BYTE_ARRAY"},
    "delta": {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"},
}
TYPES = [pa.string(), pa.large_string(), pa.binary(), pa.string_view()]


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("type", TYPES, ids=str)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_every_encoding_of_text(tmp_path, kind, type, version):
    names = [f"photos/label {row // 10}/{row:05}.jpg" if row % 7 else None for row in range(5000)]
    table = pa.table({"path": pa.array(names, pa.string()).cast(type), "list": pa.array([[n] for n in names])})
    table = table.replace_schema_metadata({"own": "metadata"})
    options = dict(ENCODINGS[kind])
    if encoding := options.pop("column_encoding", None):
        options["column_encoding"] = {"path": encoding, "list.list.element": encoding}
    uri = str(tmp_path / "a.parquet")
    pq.write_table(table, uri, row_group_size=1500, data_page_version=version, **options)
    found = tables.read(uri)
    assert found.to_pydict() == table.to_pydict()
    assert found.schema.equals(pq.read_schema(uri), check_metadata=True)
    assert tables.read_parquet(uri, ["list"]).to_pydict() == table.select(["list"]).to_pydict()


def test_numbers_in_split_streams(tmp_path):
    table = pa.table({"x1": pa.array([0.5, None, -3.0] * 100), "path": ["a"] * 300})
    options = {"use_dictionary": False, "column_encoding": {"x1": "BYTE_STREAM_SPLIT", "path": "DELTA_BYTE_ARRAY"}}
    pq.write_table(table, tmp_path / "a.parquet", **options)
    assert tables.read(str(tmp_path / "a.parquet")) == table


def test_text_in_delta_encoding(shared):
    path = shared("cases/delta-encoding.parquet")
    assert tables.read(str(path)) == pq.read_table(path)


def test_no_rows(tmp_path):
    table = pa.table({"path": pa.array([], pa.string())})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY")
    assert tables.read(str(tmp_path / "a.parquet")) == table


def test_what_is_written_is_plain_csv(tmp_path):
    uri = str(tmp_path / "a.csv")
    tables.write(uri, pa.table(ROWS))
    assert pacsv.read_csv(uri).to_pydict() == ROWS | {"label": ["é", "a;b", ""]}
