"""How many network actors run on a cluster, and the parts of the pipeline that are the same for any network."""

import os
import signal
import sys
from unittest.mock import MagicMock

import numpy as np
import pyarrow as pa
import pytest

from dim.data.limits import LIMITS
from dim.errors import JobFailed, UserError
from dim.extract import photo_tables, pipeline
from dim.extract.config import ExtractConfig
from dim.extract.embedder import Recipe, set_up_tensorflow
from dim.extract.resources import Resources, resources
from dim.io import files
from dim.model.spec import Source, Spec
from dim.whiten import distributed_sums


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of nodes with these CPUs, and GPUs."""

    def of(*cpus, gpus=0):
        monkeypatch.setattr(
            pipeline.ray, "cluster_resources", lambda: {"CPU": sum(cpus)} | ({"GPU": gpus} if gpus else {})
        )
        nodes = [{"Alive": True, "Resources": {"CPU": count} | ({"GPU": gpus} if gpus else {})} for count in cpus]
        monkeypatch.setattr(pipeline.ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 64}}])

    return of


# One node with 8 CPUs lives; as many with a GPU as on the shipped cluster may come.
GROWING = {"CPU": 8, "autoscaled_8CPU_1GPU": 8}


@pytest.mark.parametrize(
    ("asked", "images", "workers"),
    [
        ((None, None), 1, 1),  # a query: no second node is started for it
        ((None, None), 64 * 256, 1),
        ((None, None), 64 * 256 + 1, 2),
        ((None, None), 10**6, 8),
        ((8, None), 1, 1),  # no actor that would get no photo
        ((8, None), 3 * 256, 3),
        ((8, None), 10**6, 8),
        ((None, 0.0), 1, 1),
        ((None, 0.0), 10**6, 9),
    ],
)
def test_the_pool_follows_the_work(monkeypatch, asked, images, workers):
    monkeypatch.setattr(pipeline.ray, "cluster_resources", lambda: GROWING)
    monkeypatch.setattr(pipeline.ray, "nodes", lambda: [{"Alive": True, "Resources": GROWING}])
    assert resources(*asked, None, 224, images).workers == workers


@pytest.mark.parametrize(
    ("cpus", "gpus", "asked", "expected"),
    [
        ((2,), 0, (None, None), (1, 1, 0)),
        ((16,), 0, (None, None), (1, 15, 0)),
        ((8, 8, 8), 0, (None, None), (3, 7, 0)),
        ((0, 8), 0, (None, None), (1, 7, 0)),  # a head node without CPUs
        ((2, 8), 0, (None, None), (5, 1, 0)),  # one on the small node, four on the large
        ((1, 96, 96), 0, (None, None), (2, 95, 0)),  # a small head does not split the large ones into 192
        ((5, 9), 0, (None, None), (2, 4, 0)),
        ((8,), 0, (2, None), (2, 3, 0)),
        ((1,), 0, (None, None), (1, 0.25, 0)),
        ((2,), 0, (2, None), (2, 0.25, 0)),
        ((3,), 0, (2, None), (2, 0.375, 0)),
        ((16,), 2, (None, None), (2, 1, 1)),
        ((16,), 2, (None, 0.5), (4, 1, 0.5)),
        ((4,), 8, (None, None), (8, 0.125, 1)),
        ((16,), 2, (1, 0.0), (1, 15, 0)),
    ],
)
def test_resources(cluster, cpus, gpus, asked, expected):
    cluster(*cpus, gpus=gpus)
    found = resources(*asked, 32, 224, images=10**9)
    assert (found.workers, found.cpus, found.gpus, found.batch_size) == (*expected, 32)
    assert found.streams == (1 if found.gpus else int(found.cpus) + 1)
    # Ray Data needs CPUs left for decoding, and another number than a decoder's so as not to fuse the two.
    assert found.workers * found.cpus + pipeline.DECODER_CPUS <= sum(cpus)
    assert found.cpus != pipeline.DECODER_CPUS


def decoded(*statuses):
    ok = [status == "ok" for status in statuses]
    pixels = [{"data": bytes(range(12)), "height": 2, "width": 2} if fine else None for fine in ok]
    rows = [
        {"image_id": str(row), "content": "c", "shard": "s", "pixels": pixels[row], "status": status}
        for row, status in enumerate(statuses)
    ]
    return pa.Table.from_pylist(rows, schema=photo_tables.DECODED)


def test_error_rows_pass_the_network_by():
    table = decoded("error", "ok", "error", "ok")
    images = photo_tables.images(table)
    assert [image.tolist() for image in images] == [np.arange(12).reshape(2, 2, 3).tolist()] * 2
    found = photo_tables.embedded(table, np.array([[1, 2], [3, 4]], np.float32), "float32")
    assert found["descriptor"].to_pylist() == [None, [1, 2], None, [3, 4]]
    assert found["shard"].to_pylist() == ["s"] * 4
    nothing = photo_tables.embedded(decoded("error"), np.zeros((0, 2), np.float32), "float16")
    assert photo_tables.images(decoded("error")) == []
    assert nothing["descriptor"].type == pa.list_(pa.float16(), 2) and nothing["descriptor"].to_pylist() == [None]


@pytest.mark.parametrize(("start", "stop"), [(0, 6), (1, 4), (3, 4), (2, 2)])
def test_photos_are_found_in_any_part_of_a_table(start, stop):
    sizes = [(1, 2), None, (3, 4), None, (2, 2), (5, 1)]
    photos = [size and np.full((*size, 3), row, np.uint8) for row, size in enumerate(sizes)]
    rows = [
        {} if photo is None else {"pixels": {"data": photo.tobytes(), "height": len(photo), "width": photo.shape[1]}}
        for photo in photos
    ]
    table = pa.Table.from_pylist(rows, schema=photo_tables.DECODED)
    found = photo_tables.images(pa.concat_tables([table.slice(start, stop - start), table]))
    expected = [photo for photo in photos[start:stop] + photos if photo is not None]
    assert len(found) == len(expected)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_decoding_task_reads_many_photos_at_a_time(s3, demo, monkeypatch):
    monkeypatch.setattr(pipeline.cluster, "earlier_attempts", lambda: 0)
    bucket = s3.bucket("decoding-task")
    names = [str(path.relative_to(demo)) for path in sorted(demo.rglob("*.jpg"))[:40]]
    for name in names:
        files.write_bytes(f"{bucket}/{name}", (demo / name).read_bytes())

    def decoded(folder):
        rows = [
            {"image_id": name, "path": f"{folder}/{name}", "box": [0.0, 0.0, 40.0, 40.0], "content": "", "shard": ""}
            for name in [*names, "none.jpg"]
        ]
        blocks = list(
            pipeline._decode(
                pa.Table.from_pylist(rows), step=8, size=32, resize="squash", scaled=False, limits=LIMITS, change=None
            )
        )
        assert [len(block) for block in blocks] == [8] * 5 + [1]
        return pa.concat_tables(blocks)

    s3.faults(latency=0.1)
    found, expected = decoded(bucket), decoded(demo)
    counts = s3.faults()
    assert found.drop_columns("error") == expected.drop_columns("error")
    assert found["image_id"].to_pylist() == [*names, "none.jpg"]
    assert found["status"].to_pylist() == ["ok"] * len(names) + ["error"]
    assert counts["most"] >= 16 and counts["requests"] <= 2 * len(names) + 2


@pytest.mark.parametrize("ordered", [False, True])
def test_a_task_that_dies_costs_no_row_and_doubles_none(ray_session, demo, monkeypatch, ordered):
    """The task has handed on the first of its rows, and the driver may have taken them, when it dies."""
    monkeypatch.setattr(pipeline.tasks, "slots", lambda: 1)
    monkeypatch.setattr(pipeline, "TASKS_PER_CPU", 2)
    paths = [str(path) for path in sorted(demo.rglob("*.jpg"))[:30]]
    ids = [str(row) for row in range(len(paths))]
    boxes = pa.nulls(len(paths), pa.list_(pa.float64()))
    rows = pa.table({"image_id": ids, "path": paths, "box": boxes, "content": ids, "shard": ids})

    def deadly(pixels, name):
        if name in ("13", "25") and pipeline.cluster.earlier_attempts() < 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return pixels

    named = {"size": 32, "resize": "squash", "limits": LIMITS, "change": deadly, "ordered": ordered}
    found = pipeline.decoded(rows, 2, **named).iter_batches(batch_size=None, batch_format="pyarrow")
    found = [row for block in found for row in block["image_id"].to_pylist()]
    assert found == ids if ordered else sorted(found) == sorted(ids)


def test_a_network_that_has_died_over_and_over_is_given_up(monkeypatch):
    monkeypatch.setattr(pipeline, "_embedder", lambda *_: None)
    monkeypatch.setattr(pipeline.cluster, "earlier_attempts", lambda: pipeline.NETWORK_TRIES)
    with pytest.raises(JobFailed, match="the network's process died 5 times over the same photos"):
        pipeline.Network(None, "float32", Resources(1, 1, 0, 4))(decoded("ok"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch-size must be at least 1, not 0"),
        ({"shard_rows": -1}, "--shard-rows must be at least 1, not -1"),
        ({"workers": 0}, "--workers must be at least 1, not 0"),
        ({"scales": ()}, "--scales must be above 0"),
        ({"scales": (1.0, 0.0)}, "--scales must be above 0 and at most 4, not 1.0, 0.0"),
        ({"scales": (float("nan"),)}, "--scales must be above 0 and at most 4, not nan"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        ExtractConfig(manifest="m", model="x", out="o", **options)


class Begun(Exception):
    pass


@pytest.mark.parametrize(("resize", "one_shape"), [("squash", True), ("long-side", False)])
@pytest.mark.parametrize(
    ("module", "made"), [(pipeline, pipeline._embedder), (distributed_sums, distributed_sums._forward)]
)
def test_tensorflow_is_told_whether_shapes_vary(monkeypatch, resize, one_shape, module, made):
    def set_up(*_, **named):
        raise Begun(named)

    monkeypatch.setattr(module, "set_up_tensorflow", set_up)
    recipe = Recipe(Source(Spec(resize=resize), "random", None), "float32")
    with pytest.raises(Begun) as begun:
        made(recipe, Resources(1, 1, 1, 256))
    assert begun.value.args == ({"one_shape": one_shape},)


@pytest.mark.parametrize(
    ("named", "users", "tuned"),
    [({}, None, "0"), ({"one_shape": True}, None, "1"), ({}, "1", "1"), ({"one_shape": True}, "0", "0")],
)
def test_convolutions_are_tuned_for_a_shape_that_comes_again(monkeypatch, named, users, tuned):
    monkeypatch.setenv("TF_CUDNN_USE_AUTOTUNE", users or "")  # which puts it back after the test
    if users is None:
        del os.environ["TF_CUDNN_USE_AUTOTUNE"]
    monkeypatch.setitem(sys.modules, "tensorflow", MagicMock())
    set_up_tensorflow(2, **named)
    assert os.environ["TF_CUDNN_USE_AUTOTUNE"] == tuned
