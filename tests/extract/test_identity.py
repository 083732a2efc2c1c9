"""The embedding identity: each field counts, and the message names each that differs."""

import dataclasses
import json

import pytest

from dim.errors import UserError
from dim.extract import identity
from dim.extract.embedding import IGNORED, SRGB, NetworkEmbedding, from_json
from dim.io import files

ONE = NetworkEmbedding("vgg16", "block5_conv3", "gem", "a" * 64, "caffe", 224, "squash", (1.0,), None, None, "float32")
OTHER = {
    "backbone": "vgg19",
    "layer": "block5_pool",
    "pooling": "mac",
    "weights": "b" * 64,
    "preprocessing": "unit",
    "image_size": 320,
    "resize": "long-side",
    "scales": (1.0, 0.5),
    "scales_mean": "gem",
    "whitening": "c" * 64,
    "precision": "bfloat16",
    "scaled_decode": True,
    "profiles": IGNORED,
}


def test_equal_embeddings_are_equal_wherever_they_come_from():
    found = from_json(json.loads(json.dumps(ONE.as_json())), "run.json")
    assert found == ONE and found.id == ONE.id
    identity.require_equal(ONE, "a", found, "b")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(NetworkEmbedding)])
def test_each_field_counts_and_is_named(field):
    other = dataclasses.replace(ONE, **{field: OTHER[field]})
    assert other.id != ONE.id
    with pytest.raises(UserError) as error:
        identity.require_equal(ONE, "here", other, "there")
    message = str(error.value)
    assert message.startswith(f"'here' and 'there' were made by different embeddings: {field} ")
    assert repr(OTHER[field]) in message and "\n" not in message and message.count(";") == 1


# As dim wrote it before it knew of colour profiles.
FIRST = {
    "id": "54727f9b8201b9997f94dc450cdfb488a5f01663faaf5f1cc933f97164ef5725",
    "backbone": "vgg16",
    "layer": "block5_conv3",
    "pooling": "gem",
    "weights": "0" * 64,
    "preprocessing": "caffe",
    "image_size": 224,
    "resize": "squash",
    "scales": [1.0],
    "scales_mean": None,
    "whitening": None,
    "precision": "float32",
    "scaled_decode": False,
}


def test_the_first_version_stays_readable_with_its_id():
    found = from_json(FIRST, "run.json")
    assert found.profiles == IGNORED and found.id == FIRST["id"]
    assert json.loads(json.dumps(found.as_json())) == FIRST
    assert dataclasses.replace(found, profiles=SRGB).id != found.id
    whitened = dataclasses.replace(found, whitening="2" * 64)
    assert from_json(json.loads(json.dumps(whitened.as_json())), "run.json") == whitened


def test_the_second_version_says_so():
    document = json.loads(json.dumps(ONE.as_json()))
    assert document["version"] == 2 and document["profiles"] == "srgb"
    with pytest.raises(UserError, match=r"run\.json holds an embedding of version 3; this dim reads 1 and 2"):
        from_json(document | {"version": 3}, "run.json")
    with pytest.raises(UserError, match="the embedding's fields don't match its id"):
        from_json({name: value for name, value in document.items() if name != "version"}, "run.json")


@pytest.mark.parametrize(
    ("job", "advice"),
    [
        ("extract", "run the same extract.py with another --out"),
        ("index", "run the same extract.py again with another --out, and index.py on its output"),
        ("whiten", "run the same extract.py again with another --out, and whiten.py on its output"),
    ],
)
def test_where_the_versions_meet_the_message_says_what_to_run(tmp_path, job, advice):
    old = str(tmp_path / "old.npz") if job == "whiten" else str(tmp_path / "old")
    if job != "whiten":
        files.make_folder(old)
        files.write_json(f"{old}/run.json", {"job": job, "embedding": FIRST})
    first = from_json(FIRST, old)
    second = dataclasses.replace(first, profiles=SRGB)
    for pair in ((first, old, second, "new"), (second, "new", first, old)):
        with pytest.raises(UserError) as error:
            identity.require_equal(*pair)
        assert str(error.value).endswith(f"{old!r} was made before dim applied colour profiles: {advice}")


def test_all_that_differs_is_named():
    with pytest.raises(UserError) as error:
        identity.require_equal(ONE, "here", NetworkEmbedding(**OTHER), "there")
    assert all(f"{name} " in str(error.value) for name in OTHER)


def with_id(**changes):
    return dataclasses.replace(ONE, **changes).as_json()


def nested(depth):
    return json.loads("[" * depth + "]" * depth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["embedding"].pop("layer"), r"holds no complete embedding \('layer'\)"),
        (lambda record: record["embedding"].update(scales=3), "holds no complete embedding"),
        (lambda record: record["embedding"].update(layer="x"), "the embedding's fields don't match its id"),
        (lambda record: record.update(embedding=None), "holds no complete embedding"),
        (lambda record: record.update(embedding=[]), "holds no complete embedding"),
        (lambda record: record.update(embedding="text"), "holds no complete embedding"),
        (lambda record: record.update(embedding=with_id(scales=("a",))), r"holds no .* \(scales is \['a'\]\)"),
        (lambda record: record.update(embedding=with_id(backbone=None)), r"holds no .* \(backbone is None\)"),
        (lambda record: record["embedding"].update(backbone=nested(900)), r"holds no .* \(backbone is \[\[.*\.\.\."),
    ],
)
def test_a_record_that_was_tampered_with(tmp_path, change, message):
    record = {"job": "extract", "embedding": ONE.as_json()}
    files.write_json(str(tmp_path / "run.json"), record)
    assert identity.of_folder(str(tmp_path)) == ONE
    record = files.read_json(str(tmp_path / "run.json"))
    change(record)
    (tmp_path / "run.json").write_text(json.dumps(record))  # indented, it can't be as deep
    with pytest.raises(UserError, match=message):
        identity.of_folder(str(tmp_path))


def test_a_folder_that_is_none_of_ours(tmp_path):
    with pytest.raises(UserError, match=r"is not an output folder of dim: it has no run\.json"):
        identity.of_folder(str(tmp_path))


@pytest.mark.parametrize("inputs", [{}, {"inputs": None}, {"inputs": []}, {"inputs": {"model": 5}}])
def test_a_record_without_inputs(tmp_path, inputs):
    files.write_json(str(tmp_path / "run.json"), {"job": "extract"} | inputs)
    with pytest.raises(UserError, match=r"run\.json': its inputs are .*; make this folder again"):
        identity.inputs_of(str(tmp_path))
