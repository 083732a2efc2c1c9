"""Extraction from manifest to store: each selected row exactly once, with faulty photos and any size of shards."""

import io
import json
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from marks import slow
from PIL import ExifTags, Image

from dim.data import manifest as manifests
from dim.errors import UserError
from dim.extract import descriptors, store
from dim.io import files
from dim.model import devices

pytestmark = pytest.mark.usefixtures("stand_in")


def encoded(mode="RGB", format="PNG", size=(40, 30), **options):
    file = io.BytesIO()
    Image.effect_noise(size, 100).convert("RGB").convert(mode).save(file, format, **options)
    return file.getvalue()


def oriented():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return encoded(format="JPEG", exif=exif)


def wide_grey():
    file = io.BytesIO()
    Image.fromarray(np.full((30, 40), 40_000, np.uint16)).save(file, "PNG")
    return file.getvalue()


GOOD = {
    "plain.jpg": encoded(format="JPEG"),
    "progressive.jpg": encoded(format="JPEG", progressive=True),
    "exif.jpg": oriented(),
    "cmyk.jpg": encoded("CMYK", "JPEG"),
    "palette.gif": encoded("P", "GIF"),
    "alpha.png": encoded("RGBA"),
    "grey.png": encoded("L"),
    "one-bit.png": encoded("1"),
    "sixteen-bit.png": wide_grey(),
    "dot.png": encoded(size=(1, 1)),
    "line.png": encoded(size=(1, 20_000)),
}
BAD = {
    "truncated.jpg": (encoded(format="JPEG", size=(400, 300))[:5000], "truncated"),
    "empty.jpg": (b"", "the file is empty"),
    "html.jpg": (b"<!DOCTYPE html><html>404</html>", "no photo in a known format: it begins with b'<!DOCTYPE html>"),
    "missing.jpg": (False, "cannot read the file: No such file or directory"),
}


def test_every_kind_of_photo_is_one_row(photos, run, rows, tmp_path, caplog):
    for name, content in GOOD.items():
        photos.add(name, content)
    for name, (content, _) in BAD.items():
        photos.add(name, content)
    (photos.folder / "folder.jpg").mkdir()
    photos.add("folder.jpg", False)
    result = run(photos)
    assert result.items() >= {"images": 16, "ok": 11, "errors": 5, "computed": 16}.items()
    assert result == json.loads((tmp_path / "out" / "result.json").read_text())
    found = rows()
    assert set(found) == {name.partition(".")[0] for name in (*GOOD, *BAD, "folder")}
    for name in GOOD:
        row = found[name.partition(".")[0]]
        assert (row["status"], row["error"], len(row["descriptor"])) == ("ok", None, 8), name
    sizes = {name: (found[name]["width"], found[name]["height"]) for name in ("plain", "exif", "dot", "line")}
    assert sizes == {"plain": (40, 30), "exif": (30, 40), "dot": (1, 1), "line": (1, 20_000)}
    for name, (_, reason) in BAD.items():
        row = found[name.partition(".")[0]]
        assert (row["status"], row["descriptor"], row["width"]) == ("error", None, None)
        assert reason in row["error"] and "\n" not in row["error"], name
    assert "cannot read the file" in found["folder"]["error"]
    (summary,) = (said for said in caplog.messages if said.startswith("photos that could not be read: 5 ("))
    assert "1 × the file is empty" in summary and summary.endswith("); each has an error row")


def test_only_the_split_that_is_asked_for(photos, run, rows):
    photos.add("a.png", split="train").add("b.png", split="test").add("c.png", split=None)
    assert run(photos, split="test")["images"] == 1
    assert list(rows()) == ["b"]


def test_a_second_run_has_nothing_to_do(ten, run, rows):
    assert run(ten)["computed"] == 10
    before = rows()
    assert run(ten).items() >= {"images": 10, "ok": 10, "computed": 0, "images_per_second": 0.0}.items()
    assert rows() == before


def test_only_errors_are_tried_again(ten, run, rows):
    ten.add("empty.jpg", b"").add("missing.jpg", False)
    assert run(ten).items() >= {"ok": 10, "errors": 2, "computed": 12}.items()
    assert run(ten)["computed"] == 0
    assert run(ten, retry_failed=True).items() >= {"ok": 10, "errors": 2, "computed": 2}.items()
    assert len(rows()) == 12


@pytest.mark.slow
def test_a_photo_over_the_limit_is_tried_again_under_another(ten, run, rows):
    ten.add("large.png", encoded(size=(1100, 1000)))
    assert run(ten, max_megapixels=1.0).items() >= {"ok": 10, "errors": 1, "computed": 11}.items()
    reason = "the photo has 1,100 × 1,000 pixels; the limit is 1,000,000; --max-megapixels 2 allows it"
    assert rows()["large"]["error"] == reason
    assert run(ten, max_megapixels=2.0)["computed"] == 0  # the limit changes no descriptor
    assert run(ten, max_megapixels=2.0, retry_failed=True).items() >= {"ok": 11, "computed": 1}.items()
    assert rows()["large"]["width"] == 1100


@pytest.mark.slow
def test_photos_of_several_frames_are_counted(ten, run):
    frames = [Image.new("L", (40, 40), shade) for shade in (0, 255)]
    for name, format in (("moving.gif", "GIF"), ("pages.tif", "TIFF")):
        file = io.BytesIO()
        frames[0].save(file, format, save_all=True, append_images=frames[1:])
        ten.add(name, file.getvalue())
    ten.add("empty.jpg", b"")
    assert run(ten).items() >= {"computed": 13, "several_frames": 2}.items()
    assert run(ten).items() >= {"computed": 0, "several_frames": 2}.items()
    ten.remove("moving")
    assert run(ten).items() >= {"computed": 0, "several_frames": 1}.items()


def test_a_change_costs_its_own_row(ten, run, rows):
    run(ten)
    before = rows()
    ten.columns["label"][3] = "corrected"
    ten.columns["split"][4] = "val"
    ten.save()
    assert run(ten)["computed"] == 0
    (ten.folder / "2.png").write_bytes((ten.folder / "7.png").read_bytes())
    os.utime(ten.folder / "5.png", (1, 1))
    ten.remove("9")
    ten.add("new.png")
    assert run(ten).items() >= {"images": 10, "ok": 10, "computed": 3, "dropped": 3}.items()
    after = rows()
    assert set(after) == set("012345678") | {"new"}
    assert {name for name in before if after.get(name) != before[name]} == {"2", "5", "9"}
    assert after["2"]["descriptor"] == before["7"]["descriptor"]


def flip_a_bit(path):
    """In the last byte of the descriptors of the shard at `path`."""
    content = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    content[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(content)


def test_what_is_damaged_is_found_and_made_again(ten, run, rows, tmp_path):
    run(ten, shard_rows=1)
    before, names = rows(), files.names(str(tmp_path / "out"))
    shards = sorted((tmp_path / "out").glob("part-*.parquet"))
    log = files.read_json(str(tmp_path / "out" / "shards.json"))
    # With another size than in the log, or lost: made again.
    shards[0].write_bytes(b"")
    shards[1].write_bytes(shards[1].read_bytes()[:-9])
    shards[2].unlink()
    # The log was not written any more: what is sound is entered, the rest is made again.
    for shard in shards[3:6]:
        del log[shard.stem]
    flip_a_bit(shards[3])
    log[shards[6].stem] = {"rows": 1}
    shards[7].with_suffix(".parquet.7.tmp").write_bytes(b"PAR1")
    files.write_json(str(tmp_path / "out" / "shards.json"), log)
    assert run(ten, shard_rows=1)["computed"] == 4
    assert rows() == before and files.names(str(tmp_path / "out")) == names
    # A bit that flips later is seen by those who read it; they say what to do.
    flip_a_bit(shards[8])
    with pytest.raises(UserError, match=r"is damaged .*; delete it, and run the same extract\.py again"):
        descriptors.read(str(tmp_path / "out"), manifests.read(ten.manifest))
    shards[8].unlink()
    assert run(ten, shard_rows=1)["computed"] == 1
    assert rows() == before


@pytest.mark.parametrize("log", [None, '{"part-0": 1', *slow("", "[]")])
def test_a_store_without_a_log_is_read_once(ten, run, rows, tmp_path, log):
    run(ten.add("bad.jpg", b"no photo"))
    before, result = rows(), json.loads((tmp_path / "out" / "result.json").read_text())
    path = tmp_path / "out" / "shards.json"
    known = path.read_text()
    if log is None:
        path.unlink()
    else:
        path.write_text(log)
    assert run(ten) == result | {"computed": 0, "images_per_second": 0.0}
    assert rows() == before and path.read_text() == known


def test_any_cut_gives_the_same_rows(ten, run, rows):
    run(ten.add("bad.jpg", b"no photo"))
    for number, cut in enumerate(
        (
            {"batch_size": 1, "shard_rows": 3},
            {"batch_size": 64, "shard_rows": 1024},
            {"batch_size": 3, "shard_rows": 1, "workers": 2},
        )
    ):
        run(ten, out=f"cut {number}", **cut)
        assert rows(f"cut {number}") == rows()


def test_another_embedding_or_store_is_refused(ten, run, rows, tmp_path):
    run(ten)
    before = (tmp_path / "out" / "run.json").read_text()
    for options, said in (
        ({"image_size": 64}, "image_size 32 ≠ 64"),
        ({"model": "vgg16-mac"}, "pooling 'gem' ≠ 'mac'"),
        ({"model": "vgg16-gem@block5_pool"}, "layer 'block5_conv3' ≠ 'block5_pool'"),
        ({"model": "vgg19-gem", "image_size": 32}, "backbone 'vgg16' ≠ 'vgg19'; layer"),
        ({"weights": None}, "weights 'random' ≠ "),
        ({"preprocessing": "unit"}, "preprocessing 'caffe' ≠ 'unit'"),
        ({"resize": "long-side"}, "resize 'squash' ≠ 'long-side'"),
        ({"scales": (1.0, 0.5)}, r"scales \(1.0,\) ≠ \(1.0, 0.5\); scales_mean None ≠ 'mean'"),
        ({"precision": "bfloat16"}, "precision 'float32' ≠ 'bfloat16'"),
        ({"store": "float16"}, "stores float32, not float16; use another --out"),
    ):
        with pytest.raises(UserError, match=said) as error:
            run(ten, **options)
        assert "\n" not in str(error.value)
    assert (tmp_path / "out" / "run.json").read_text() == before


@pytest.mark.slow
def test_what_is_there_decides_on_the_precision_where_none_is_asked_for(ten, run, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "best_precision", lambda _: "bfloat16")
    run(ten, precision="float32")
    ten.add("new.png")
    assert run(ten, precision="auto").items() >= {"images": 11, "computed": 1}.items()
    run(ten, precision="auto", out="other")
    for out, kept in (("out", "float32"), ("other", "bfloat16")):
        assert json.loads((tmp_path / out / "run.json").read_text())["embedding"]["precision"] == kept
    with pytest.raises(UserError, match="precision 'float32' ≠ 'bfloat16'"):
        run(ten, precision="bfloat16")


def test_half_precision_on_disk(ten, run, rows):
    run(ten, out="full")
    run(ten.add("bad.jpg", b""), out="half", store="float16")
    full, half = rows("full"), rows("half")
    for name, row in full.items():
        np.testing.assert_array_equal(half[name]["descriptor"], np.float16(row["descriptor"]))
    assert half["bad"]["descriptor"] is None


@pytest.mark.parametrize("kind", ["float32", *slow("float16")])
def test_plain_readers_read_the_files(ten, run, tmp_path, kind):
    duckdb = pytest.importorskip("duckdb")
    import pandas as pd
    import pyarrow as pa
    import pyarrow.dataset as ds

    run(ten.add("bad.jpg", b""), store=kind)
    paths = sorted(str(path) for path in (tmp_path / "out").glob("*.parquet"))
    table = ds.dataset(paths).to_table()
    assert table.schema == store.schema(8, kind)
    assert table.schema.field("descriptor").type == pa.list_(pa.type_for_alias(kind), 8)
    frame = pd.read_parquet(paths).set_index("image_id")
    assert frame.loc["bad", "descriptor"] is None and frame.loc["bad", "status"] == "error"
    assert frame.loc["3", "descriptor"].shape == (8,) and len(frame) == 11
    if kind == "float32":
        query = f"SELECT image_id, status, len(descriptor) FROM '{tmp_path}/out/*.parquet' ORDER BY 1"
        found = duckdb.sql(query).fetchall()
        assert found == [(str(number), "ok", 8) for number in range(10)] + [("bad", "error", None)]


def test_photos_outside_the_root_are_refused(ten, run, tmp_path):
    with pytest.raises(UserError, match=r"image_id '0' of .* is at .*, outside --root"):
        run(ten, root=str(tmp_path / "elsewhere"))
    (tmp_path / "secret.png").write_bytes((ten.folder / "1.png").read_bytes())
    (ten.folder / "link.png").symlink_to(tmp_path / "secret.png")
    assert run(ten, root=str(ten.folder))["ok"] == 10
    for name in ("link.png", "../secret.png"):
        ten.add(name, False)
        with pytest.raises(UserError, match="outside --root"):
            run(ten, root=str(ten.folder), out="other")
        ten.remove(ten.columns["image_id"][-1])
    assert not (tmp_path / "other").exists()


def test_photos_in_tars_have_the_descriptors_that_they_have_as_files(ten, run, rows, tmp_path):
    run(ten)
    expected = rows()
    packed = type(ten)(tmp_path / "packed")
    packed.folder.mkdir()
    names = ten.columns["path"]
    for tar, first, last in [("a.tar", 0, 6), ("b.tar", 6, 9)]:
        with tarfile.open(packed.folder / tar, "w") as archive:
            for name in reversed(names[first:last]):
                archive.add(ten.folder / name, f"photos/{name}")
    content = (packed.folder / "b.tar").read_bytes()
    (packed.folder / "b.tar").write_bytes(content[: content.rindex(b"photos/6.png") + 700])
    for number, name in enumerate(names):
        if number < 9:
            packed.add(f"{'ab'[number > 5]}.tar#photos/{name}", False)
        else:
            packed.add(name, (ten.folder / name).read_bytes())
    packed.add("a.tar#none.png", False).add("c.tar#0.png", False)
    result = run(packed, out="from tars", root=str(packed.folder), shard_rows=3)
    found = rows("from tars")
    assert (result["images"], result["errors"]) == (12, 3)
    for name, row in expected.items():
        if name != "6":
            assert found[name] | {"content": ""} == row | {"content": ""}
    errors = {name: row["error"] for name, row in found.items() if row["error"]}
    assert errors.pop("6").startswith("cannot read the file: the tar is cut off after 188 of the ")
    assert errors == {
        "a.tar#none": "cannot read the file: the tar has no file 'none.png'",
        "c.tar#0": "cannot read the file: No such file or directory",
    }
    assert run(packed, out="from tars", shard_rows=3)["computed"] == 0
    packed.remove("c.tar#0")
    outside = packed.add("../photos.tar#a.png", False)
    with pytest.raises(UserError, match="outside --root"):
        run(outside, out="from tars", root=str(packed.folder))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda rows: rows.slice(1), "10 lost, such as '0'"),
        (lambda rows: rows.take([0, *range(len(rows))]), "1 more than once, such as '0'"),
    ],
)
def test_a_row_that_the_pipeline_loses_or_doubles_ends_the_job(ten, run, monkeypatch, changed, said):
    from dim.extract import pipeline

    whole = pipeline.run
    monkeypatch.setattr(pipeline, "run", lambda *arguments: (changed(rows) for rows in whole(*arguments)))
    with pytest.raises(RuntimeError, match=f"are not the 10 asked for: {said}"):
        run(ten, batch_size=16, shard_rows=16)
    assert not (ten.folder.parent / "out" / "result.json").exists()


def test_a_mistake_of_the_network_ends_in_one_line_and_no_trace(ten, run, tmp_path, monkeypatch):
    from dim.extract import pipeline

    class Broken:
        def __init__(self, *arguments):
            pass

        def __call__(self, _):
            raise UserError("the weights are of another network")

    monkeypatch.setattr(pipeline, "Network", Broken)
    with pytest.raises(UserError, match=r"^the weights are of another network$"):
        run(ten)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_shard_that_hides_what_made_it_is_made_again(ten, run, rows, tmp_path):
    run(ten)
    folder, before = str(tmp_path / "out"), rows()
    (name, *_) = store.shards(folder)
    before_bytes = files.sizes(folder)[f"{name}.parquet"]
    table = store.read_shard(folder, name)
    values = pa.FixedSizeListArray.from_arrays(-store.vectors(table["descriptor"]).ravel(), 8)
    table = table.set_column(1, table.schema.field(1), values).replace_schema_metadata(None)
    facts = store.write_shard(folder, name, table)  # of another network, its metadata dropped by some tool
    assert facts["bytes"] != before_bytes
    assert run(ten)["computed"] == len(table)
    assert rows() == before
