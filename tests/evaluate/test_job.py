import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dim.errors import GateNotMet, UserError
from dim.evaluate import descriptor_sets
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import evaluate, oxford, revisited
from dim.evaluate.protocols import PROTOCOLS
from dim.extract import identity
from dim.io import files, seal
from dim.model import spec, whitening
from dim.model.whitening import Whitening

RNG = np.random.default_rng(7)
IDS = [f"p{number:02d}" for number in RNG.permutation(30)]
LABELS = [None if number == 29 else f"l{number % 8}" if number < 27 else f"alone{number}" for number in range(30)]
VECTORS = RNG.integers(-1, 2, (30, 6)).astype(np.float32) + 0.25  # few values, so that many scores tie


def listed(query, candidates, vectors=VECTORS, ids=IDS):
    """The naive ranked list: by score, then by id."""
    unit = [np.float64(np.float32(v / np.linalg.norm(v))) for v in np.asarray(vectors, np.float32)]
    rounded = [np.rint(v * 2**26) / 2**26 for v in unit]
    return sorted(candidates, key=lambda row: (-math.fsum(rounded[query] * rounded[row]), ids[row]))


def naive_ap(ranked, positive):
    ap = 0.0
    for hits, rank in enumerate(r for r, row in enumerate(ranked) if row in positive):
        ap += ((hits / rank if rank else 1.0) + (hits + 1) / (rank + 1)) / 2 / len(positive)
    return ap


@pytest.fixture
def labelled(write_manifest, write_descriptors, tmp_path):
    """Arguments for an evaluation of thirty photos by their labels."""
    manifest = write_manifest(image_id=IDS, label=LABELS)
    folder = write_descriptors(IDS, VECTORS)
    return {"manifest": manifest, "descriptors": (folder,), "out": str(tmp_path / "out")}


def test_labels_within_a_split_equals_naive_loops(labelled):
    found = evaluate(EvaluateConfig(**labelled, split="test"))
    aps, recall, hits = {}, {k: [] for k in (1, 2, 4, 5, 8, 10, 20)}, []
    for query, label in enumerate(LABELS):
        positive = {row for row in range(30) if row != query and label is not None and LABELS[row] == label}
        ranked = listed(query, [row for row in range(30) if row != query])
        if positive:
            aps[IDS[query]] = naive_ap(ranked, positive)
            hits.append(any(row in positive for row in ranked[:5]))
            for k, values in recall.items():
                values.append(any(row in positive for row in ranked[:k]))
    assert found["map"] == pytest.approx(np.mean(list(aps.values())), abs=1e-12)
    assert found["recall"] == {str(k): pytest.approx(np.mean(values)) for k, values in recall.items()}
    assert found["top_k_accuracy"] == pytest.approx(np.mean(hits))
    assert (found["n_queries"], found["n_database"]) == (27, 30)
    assert found["query_in_database"] is False
    table = pq.read_table(Path(labelled["out"]) / "per_query.parquet").to_pylist()
    assert {row["query_id"]: row["ap"] for row in table} == {
        **dict.fromkeys(IDS),
        **{query: pytest.approx(ap, abs=1e-12) for query, ap in aps.items()},
    }
    assert list(table[0]) == ["query_id", "label", "ap", "n_positives", "first_rank"]


@pytest.mark.parametrize(("name", "power"), [("aqe", 0), ("alpha-qe", 3)])
def test_expansion_leaves_out_the_query_as_its_own_list_does(labelled, write_descriptors, name, power):
    vectors = np.random.default_rng(1).standard_normal((30, 6)).astype(np.float32)
    unit = [np.float64(np.float32(v / np.linalg.norm(v))) for v in vectors]
    aps = []
    for query, label in enumerate(LABELS):
        positive = {row for row in range(30) if row != query and label is not None and LABELS[row] == label}
        others = [row for row in range(30) if row != query]
        near = listed(query, others, vectors)[:3]
        moved = unit[query] + sum(max(0, unit[query] @ unit[row]) ** power * unit[row] for row in near)
        ranked = listed(30, others, [*vectors, moved], [*IDS, "query"])
        aps += [naive_ap(ranked, positive)] if positive else []
    config = labelled | {"descriptors": (write_descriptors(IDS, vectors, name="random"),)}
    found = evaluate(EvaluateConfig(**config, expansion=(name,), neighbours=3, report=False))
    assert found["map"] == pytest.approx(np.mean(aps), abs=1e-9)


def test_files_hold_what_is_returned_and_say_how_it_came_about(labelled):
    found = evaluate(EvaluateConfig(**labelled))
    out = Path(labelled["out"])
    for name in ("metrics.json", "result.json"):
        assert json.loads((out / name).read_text(), parse_constant=pytest.fail) == json.loads(json.dumps(found))
    assert json.loads((out / "run.json").read_text())["status"] == "done"
    assert found["protocol"] == "labels"
    assert found["embedding"]["image_size"] == 224
    assert found["embedding"]["layer"] == "block5_conv3"
    assert found["embedding"]["preprocessing"] == "caffe"
    assert found["embedding"]["id"] == identity.of_folder(labelled["descriptors"][0]).id
    assert found["whitening"] == []
    report = json.loads((out / "classification_report.json").read_text())
    assert report["top_k"]["accuracy"] == pytest.approx(found["top_k_accuracy"])
    assert report["top_1"]["accuracy"] == pytest.approx(found["recall"]["1"])


@pytest.mark.parametrize(("photos", "known"), [(11, ["1", "2", "4", "5", "8"]), (12, ["1", "2", "4", "5", "8", "10"])])
def test_recall_that_takes_in_a_whole_list_is_not_measured(write_manifest, write_descriptors, tmp_path, photos, known):
    manifest = write_manifest(image_id=IDS[:photos], label=[f"l{row % 3}" for row in range(photos)])
    folder = write_descriptors(IDS[:photos], VECTORS[:photos])
    config = EvaluateConfig(manifest=manifest, descriptors=(folder,), out=str(tmp_path / "out"))
    found = evaluate(config)
    assert (list(found["recall"]), found["n_listed"]) == (known, photos - 1)
    split = ["val"] * 4 + ["test"] * (photos - 4)
    manifest = write_manifest("split.csv", image_id=IDS[:photos], label=["l"] * photos, split=split)
    # All 7 or 8 photos of the other split are listed: no query leaves.
    found = evaluate(replace(config, manifest=manifest, query_split="val", database_split="test"))
    assert list(found["recall"]) == [k for k in known if int(k) < photos - 4]


def test_what_the_seed_called_map_is_left_out_where_it_must_be_one(write_manifest, write_descriptors, tmp_path, caplog):
    caplog.set_level("INFO")
    for photos, measured in ((6, False), (7, True)):
        manifest = write_manifest(image_id=IDS[:photos], label=["a", "b"] * 3 + ["a"] * (photos - 6))
        folder = write_descriptors(IDS[:photos], VECTORS[:photos], name=f"d{photos}")
        found = evaluate(EvaluateConfig(manifest=manifest, descriptors=(folder,), out=str(tmp_path / "out")))
        report = json.loads((tmp_path / "out" / "classification_report.json").read_text())
        assert ("top_k_accuracy" in found, "top_k" in report, "top_1" in report) == (measured, measured, True)
    assert (
        "not measured, as lists have 5 photos: recall@5, recall@8, recall@10, recall@20, recall@100, recall@1000"
        in caplog.text
    )


@pytest.mark.parametrize(("photos", "measured"), [(4, False), (8, True)])
def test_a_score_of_the_first_four_of_four_is_not_measured(
    write_manifest, write_descriptors, tmp_path, photos, measured
):
    ids = [f"ukbench{number:05d}" for number in range(photos)]
    manifest = write_manifest(image_id=ids, label=[str(number // 4) for number in range(photos)])
    folder = write_descriptors(ids, VECTORS[:photos])
    config = EvaluateConfig(manifest=manifest, descriptors=(folder,), out=str(tmp_path / "o"), protocol="ukbench")
    assert ("ns_score" in evaluate(config)) == measured


def test_queries_of_one_split_against_the_database_of_another(write_manifest, write_descriptors, tmp_path):
    split = ["test" if number < 8 else "train" for number in range(30)]
    manifest = write_manifest(image_id=IDS, label=LABELS, split=split)
    config = EvaluateConfig(
        manifest=manifest,
        descriptors=(write_descriptors(IDS, VECTORS),),
        out=str(tmp_path / "out"),
        query_split="test",
        database_split="train",
    )
    found = evaluate(config)
    aps = [naive_ap(listed(q, range(8, 30)), {r for r in range(8, 30) if LABELS[r] == LABELS[q]}) for q in range(8)]
    assert found["map"] == pytest.approx(np.mean(aps), abs=1e-12)
    assert (found["n_queries"], found["n_database"], found["query_split"]) == (8, 22, "test")


def test_unreadable_photos_are_counted_and_still_count_as_positives(labelled, write_descriptors):
    folder = write_descriptors(IDS, VECTORS, name="broken", errors=(IDS[0],))
    found = evaluate(EvaluateConfig(**labelled | {"descriptors": (folder,)}))
    assert (found["unreadable_queries"], found["unreadable_database"], found["n_database"]) == (1, 1, 29)
    table = pq.read_table(Path(labelled["out"]) / "per_query.parquet").to_pylist()
    assert {row["query_id"] for row in table} == set(IDS[1:])
    row = next(row for row in table if row["query_id"] == IDS[8])  # of the same label as the unreadable one
    positive = {row for row in range(30) if LABELS[row] == LABELS[8] and row != 8}
    assert row["n_positives"] == len(positive)
    assert row["ap"] == pytest.approx(naive_ap(listed(8, set(range(1, 30)) - {8}), positive), abs=1e-12)


GRADES = [("q", "g", "good"), ("q", "k", "ok"), ("q", "j", "junk"), ("q", "o", "good")]
BENCHMARK = ["q", "o", "g", "k", "j", "n"]
SCORES = [[1, 0], [0.99, 0.1], [0.5, 0.9], [0.8, 0.6], [0.9, 0.4], [0.6, 0.8]]


@pytest.mark.parametrize("protocol", ["holidays", "oxford", "revisited", "gldv2"])
def test_recall_is_the_share_of_queries_with_a_positive_among_the_first(
    write_manifest, write_descriptors, write_truth, tmp_path, protocol
):
    known = PROTOCOLS[protocol]
    grades = [*sorted(known.grades), None, None, None]
    truth = {(q, r): grades[(3 * q + 5 * r + q * r) % len(grades)] for q in range(6) for r in range(6, 30)}
    if not known.graded:
        truth = {(q, r): "good" for q, r in truth if LABELS[r] and LABELS[q] == LABELS[r]}
    rows = [(IDS[q], IDS[r], grade) for (q, r), grade in truth.items() if grade]
    manifest = write_manifest(image_id=IDS, label=LABELS, role=["query"] * 6 + ["database"] * 24)
    found = evaluate(EvaluateConfig(
        manifest=manifest, descriptors=(write_descriptors(IDS, VECTORS),), out=str(tmp_path / "out"), protocol=protocol,
        ground_truth=write_truth(*rows) if known.graded else None, report=False,
    ))  # fmt: skip
    for name, level in {**known.levels, "": known.level}.items():
        hits = {k: [] for k in (1, 5, 10, 20)}
        for query in range(6):
            junk = {row for (q, row), grade in truth.items() if q == query and grade in level.junk}
            positive = {row for (q, row), grade in truth.items() if q == query and grade in level.positive}
            left = listed(query, [row for row in range(6, 30) if row not in junk])
            for k in hits:
                hits[k] += [any(row in positive for row in left[:k])] if positive else []
        expected = {str(k): pytest.approx(np.mean(values)) for k, values in hits.items()}
        assert (found[name] if name else found)["recall"] == expected
        assert sum(hits[1]) < sum(hits[20])


def benchmark(write_manifest, write_descriptors, truth, out, **more):
    """A query "q", cropped from the photo "o", against five photos."""
    roles = ["query", *["database"] * 5]
    paths = ["o.jpg", *(f"{image_id}.jpg" for image_id in BENCHMARK[1:])]
    manifest = write_manifest(image_id=BENCHMARK, role=roles, path=paths)
    folder = write_descriptors(BENCHMARK, SCORES)
    return EvaluateConfig(manifest=manifest, descriptors=(folder,), ground_truth=truth, out=str(out), **more)


def test_oxford_keeps_the_query_in_the_database(write_manifest, write_descriptors, write_truth, tmp_path):
    truth = write_truth(*GRADES)
    config = benchmark(write_manifest, write_descriptors, truth, tmp_path / "out", protocol="oxford")
    found = evaluate(config)
    assert found["map"] == oxford(["o", "j", "k", "n", "g"], good=["g", "o"], ok=["k"], junk=["j"])
    assert found["query_in_database"] is True
    assert (found["n_queries"], found["n_database"]) == (1, 5)


def test_revisited_has_its_three_levels(write_manifest, write_descriptors, write_truth, tmp_path):
    truth = write_truth(("q", "g", "hard"), ("q", "k", "easy"), ("q", "j", "junk"))
    config = benchmark(write_manifest, write_descriptors, truth, tmp_path / "out", protocol="revisited")
    found = evaluate(config)
    expected = revisited([[0, 3, 2, 4, 1]], [{"easy": [2], "hard": [1], "junk": [3]}])
    for level in ("easy", "medium", "hard"):
        measured = {k: v for k, v in expected[level].items() if k != "aps"} | {"n_queries": 1}
        assert found[level] == measured | {"recall": {"1": measured["recall"]["1"]}}  # the lists have three photos
    assert found["map"] == found["medium"]["map"]
    assert found["mp"] == found["medium"]["mp"]


def test_gldv2_divides_by_what_could_stand_among_a_hundred(write_manifest, write_descriptors, write_truth, tmp_path):
    truth = write_truth(("q", "g", "good"), ("q", "k", "good"))
    found = evaluate(benchmark(write_manifest, write_descriptors, truth, tmp_path / "out", protocol="gldv2"))
    assert found["map"] == pytest.approx((1 / 3 + 2 / 5) / 2)


def test_holidays_queries_leave_their_own_list(write_manifest, write_descriptors, tmp_path):
    ids = ["100000", "100001", "100002", "100100", "100101"]
    vectors = [[1, 0], [0.9, 0.3], [0, 1], [0.1, 1], [0.8, 0.6]]
    role = [None if image_id.endswith("00") else "database" for image_id in ids]
    manifest = write_manifest(image_id=ids, label=[image_id[:4] for image_id in ids], role=role)
    folder = write_descriptors(ids, vectors)
    found = evaluate(
        EvaluateConfig(manifest=manifest, descriptors=(folder,), out=str(tmp_path / "o"), protocol="holidays")
    )
    assert found["n_queries"] == 2
    # lists: 100001 100101 100100 100002, positives 0 and 3; 100002 100101 100001 100000, positive 1
    assert found["map"] == pytest.approx(((1 + (1 / 3 + 2 / 4) / 2) / 2 + 0.25) / 2)


def test_ukbench_counts_the_query_among_the_first_four(write_manifest, write_descriptors, tmp_path):
    ids = [f"ukbench{number:05d}" for number in range(8)]
    vectors = [[1, 0.1 * n] if n < 3 else [0.1 * n, 1] for n in range(8)]
    manifest = write_manifest(image_id=ids, label=[str(number // 4) for number in range(8)])
    folder = write_descriptors(ids, vectors)
    found = evaluate(
        EvaluateConfig(manifest=manifest, descriptors=(folder,), out=str(tmp_path / "o"), protocol="ukbench")
    )
    unit = np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = np.argsort(-(unit @ unit.T), axis=1, kind="stable")[:, :4]
    assert found["ns_score"] == np.mean([sum(n // 4 == q // 4 for n in nearest[q]) for q in range(8)])
    assert 3 < found["ns_score"] < 4
    assert found["query_in_database"] is True


def test_distractors_are_streamed_into_the_same_order(labelled, write_manifest, write_descriptors, tmp_path):
    more, vectors = [f"p{number:02d}x" for number in range(20)], RNG.integers(-1, 2, (20, 6)) + 0.25
    second = write_manifest("distractors.csv", image_id=more)
    beside = write_descriptors([*more, "unasked"], [*vectors, vectors[0]], name="beside", errors=(more[3],))
    found = evaluate(EvaluateConfig(**labelled, distractors=second, distractor_descriptors=(beside,)))
    aps = []
    for query, label in enumerate(LABELS):
        positive = {row for row in range(30) if row != query and label is not None and LABELS[row] == label}
        candidates = [row for row in range(50) if row not in (query, 33)]
        ranked = listed(query, candidates, [*VECTORS, *vectors], [*IDS, *more])
        aps += [naive_ap(ranked, positive)] if positive else []
    assert found["map"] == pytest.approx(np.mean(aps), abs=1e-12)
    assert (found["n_database"], found["n_distractors"]) == (49, 19)


def test_two_folders_are_compared(labelled, write_descriptors):
    other = write_descriptors(IDS, RNG.standard_normal((30, 4)), name="other", pooling="mac", errors=(IDS[5],))
    folder = labelled["descriptors"][0]
    found = evaluate(EvaluateConfig(**labelled | {"descriptors": (folder, other)}))
    alone = evaluate(EvaluateConfig(**labelled | {"descriptors": (other,), "out": labelled["out"] + "-alone"}))
    assert [entry["source"] for entry in found["compared"]] == [folder, other]
    assert [entry["map"] for entry in found["compared"]] == [found["map"], alone["map"]]
    assert [entry["embedding"]["pooling"] for entry in found["compared"]] == ["gem", "mac"]
    rows = pq.read_table(Path(labelled["out"]) / "compared.parquet").to_pylist()
    assert len(rows) == 29
    differences = [row["difference"] for row in rows if row["difference"] is not None]
    assert differences == sorted(differences, reverse=True)
    assert all(row["difference"] == row["ap_other"] - row["ap"] for row in rows if row["ap"] is not None)


@pytest.fixture
def whitening_file(tmp_path, labelled):
    embedding = identity.of_folder(labelled["descriptors"][0]).as_json()
    projection = np.random.default_rng(3).standard_normal((4, 6))
    learned_on = {"manifest": "train.csv", "split": "train"}
    Whitening(np.full(6, 0.1), projection, np.ones(6), 0.25, "pca", learned_on, embedding).save(f"{tmp_path}/w.npz")
    return str(tmp_path / "w.npz")


def test_whitening_is_applied_to_both_sides_and_named(labelled, whitening_file, write_descriptors):
    found = evaluate(EvaluateConfig(**labelled, whitening=whitening_file))
    unit = (VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)).astype(np.float32)
    made = write_descriptors(IDS, whitening.load(whitening_file).apply(unit), name="whitened")
    plain = evaluate(EvaluateConfig(**labelled | {"descriptors": (made,), "out": labelled["out"] + "-plain"}))
    assert found["map"] == pytest.approx(plain["map"], abs=1e-6)
    assert found["embedding"]["whitening"] == seal.sha256_of_file(whitening_file)
    (step,) = found["whitening"]
    assert (step["by"], step["learned_on"]) == ("evaluate", {"manifest": "train.csv", "split": "train"})


def test_whitening_in_extract_and_in_the_model_is_named(labelled, whitening_file, write_descriptors, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    layer = {"power": 0.5, "learned_on": {"manifest": "other.csv"}}
    spec.write(spec.Spec(dimension=6, whitening=layer), str(model))
    (model / spec.WEIGHTS_FILE).write_bytes(b"weights")
    folder = write_descriptors(
        IDS,
        VECTORS,
        name="both",
        inputs={"model": str(model), "whitening": whitening_file},
        weights=seal.sha256_of_file(str(model / spec.WEIGHTS_FILE)),
        whitening=seal.sha256_of_file(whitening_file),
    )
    config = EvaluateConfig(**labelled | {"descriptors": (folder,)})
    by_model, by_extract = evaluate(config)["whitening"]
    assert by_model == {"by": "model", **layer}
    assert (by_extract["by"], by_extract["learned_on"]["split"]) == ("extract", "train")
    (model / spec.WEIGHTS_FILE).write_bytes(b"trained on")
    Path(whitening_file).unlink()
    (by_extract,) = evaluate(config)["whitening"]
    assert by_extract["learned_on"] is None


def test_the_gate(labelled, tmp_path):
    found = evaluate(EvaluateConfig(**labelled))
    baseline = tmp_path / "baseline.json"
    baseline.write_text(json.dumps(found | {"map": found["map"] + 0.1}))
    evaluate(EvaluateConfig(**labelled, baseline=str(baseline), max_drop=0.11))
    with pytest.raises(GateNotMet, match=r"more than --max-drop 0\.09") as error:
        evaluate(EvaluateConfig(**labelled, baseline=str(baseline), max_drop=0.09))
    assert error.value.result["map"] == found["map"]
    with pytest.raises(UserError, match="is of protocol 'labels', not 'holidays'"):
        evaluate(EvaluateConfig(**labelled, baseline=str(baseline), protocol="holidays"))


@pytest.mark.parametrize("value", [math.nan, math.inf, 7, True, "1", None, [], 10**400])
def test_a_baseline_without_a_map_is_refused(labelled, tmp_path, value):
    baseline = tmp_path / "baseline.json"
    baseline.write_text(json.dumps({"map": value, "protocol": "labels"}))
    with pytest.raises(UserError, match=r"baseline\.json' holds no map from 0 to 1, but "):
        evaluate(EvaluateConfig(**labelled, baseline=str(baseline)))
    assert not Path(labelled["out"]).exists()


def test_a_baseline_of_a_whole_number_is_one(labelled, tmp_path):
    baseline = tmp_path / "baseline.json"
    baseline.write_text('{"map": 1, "protocol": "labels"}')
    with pytest.raises(GateNotMet, match=r"below the 1\.0000"):
        evaluate(EvaluateConfig(**labelled, baseline=str(baseline), report=False))


def test_photos_outside_the_root_are_refused(labelled, write_manifest, write_descriptors, tmp_path):
    (tmp_path / "root").mkdir()
    within = {"root": str(tmp_path / "root")}
    with pytest.raises(UserError, match=r"photos\.csv' is at .*, outside --root"):
        evaluate(EvaluateConfig(**labelled, **within))
    inside = write_manifest("inside.csv", image_id=IDS, label=LABELS, path=[f"root/{name}.jpg" for name in IDS])
    distractors = {"distractors": write_manifest("d.csv", image_id=["x"])}
    distractors["distractor_descriptors"] = (write_descriptors(["x"], VECTORS[:1], name="beside"),)
    with pytest.raises(UserError, match=r"d\.csv' is at .*, outside --root"):
        evaluate(EvaluateConfig(**labelled | {"manifest": inside} | distractors | within))
    assert not Path(labelled["out"]).exists()
    evaluate(EvaluateConfig(**labelled | {"manifest": inside, "report": False} | within))


@pytest.mark.parametrize("inputs", [None, [], {"model": 5}, {"model": ["a"]}])
def test_descriptors_that_name_no_inputs_are_refused_and_nothing_is_written(labelled, inputs):
    record = Path(labelled["descriptors"][0], "run.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"inputs": inputs}))
    with pytest.raises(UserError, match=r"run\.json': its inputs are .*; make this folder again"):
        evaluate(EvaluateConfig(**labelled))
    assert not Path(labelled["out"]).exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"manifest": "none.csv"}, "no file 'none.csv'"),
        ({"descriptors": ("none",)}, "'none' is not an output folder of dim"),
        ({"descriptors": ()}, "give --descriptors DIR or --model X once, or twice"),
        ({"descriptors": ("a", "b", "c")}, "give --descriptors DIR or --model X once, or twice"),
        ({"split": "val"}, "has no row with split 'val'"),
        ({"query_split": "test"}, "--query-split and --database-split together"),
        ({"split": "test", "query_split": "test", "database_split": "train"}, "give --split alone"),
        ({"protocol": "oxford"}, "--protocol oxford needs --ground-truth"),
        ({"ground_truth": "truth.csv"}, "--protocol labels uses labels; for --ground-truth, choose one of oxford"),
        ({"max_drop": 0.1}, "--max-drop needs --baseline"),
        ({"baseline": "none.json"}, "no file 'none.json'"),
        ({"whitening": "none.npz"}, "no whitening file 'none.npz'"),
        ({"distractors": "none.csv"}, "needs one --distractor-descriptors"),
        ({"distractors": "none.csv", "distractor_descriptors": ("d",)}, "no file 'none.csv'"),
    ],
)
def test_wrong_flags_are_one_clear_line_and_nothing_is_written(labelled, changes, said):
    with pytest.raises(UserError) as error:
        evaluate(EvaluateConfig(**labelled | changes))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path(labelled["out"]).exists()


def test_wrong_input_is_one_clear_line_and_nothing_is_written(
    labelled, write_manifest, write_descriptors, write_truth, whitening_file
):
    def refused(said, **changes):
        with pytest.raises(UserError, match=said):
            evaluate(EvaluateConfig(**labelled | changes))
        assert not Path(labelled["out"]).exists()

    alone = write_manifest("alone.csv", image_id=IDS, label=IDS)
    refused("no readable query has a positive", manifest=alone)
    mac = write_descriptors(IDS, VECTORS, name="mac", pooling="mac")
    refused("different embeddings: pooling 'gem' ≠ 'mac'", whitening=whitening_file, descriptors=(mac,))
    less = write_descriptors(IDS[1:], VECTORS[1:], name="less")
    refused("lacks 1 of the 30 images", descriptors=(less,))
    distractors = write_manifest("d.csv", image_id=["x", "y"])
    beside = write_descriptors(["x"], VECTORS[:1], name="beside")
    refused(r"lacks 1 of the \d+ images asked for", distractors=distractors, distractor_descriptors=(beside,))
    both = write_manifest("both.csv", image_id=["x", IDS[0]])
    refused("both have the image_id", distractors=both, distractor_descriptors=(beside,))
    distractors = write_manifest("one.csv", image_id=["x"])
    beside = write_descriptors(["x"], VECTORS[:1], name="other", pooling="mac")
    refused("different embeddings", distractors=distractors, distractor_descriptors=(beside,))
    truth = write_truth((IDS[0], IDS[1], "easy"))
    refused("has the grade 'easy'; --protocol oxford knows good, junk, ok", protocol="oxford", ground_truth=truth)
    roles = write_manifest("roles.csv", image_id=IDS, role=["query", "query", *["database"] * 28])
    refused("not in the database", manifest=roles, protocol="revisited", ground_truth=truth)
    roles = write_manifest("roles.csv", image_id=IDS, role=["database"] * 29 + ["query"])
    refused("grades no image for any of the queries", manifest=roles, protocol="revisited", ground_truth=truth)


@pytest.mark.parametrize("value", [np.nan, 3.0])
def test_descriptors_that_are_no_unit_vectors_are_refused(labelled, write_descriptors, value):
    folder = write_descriptors(IDS, np.full((30, 1), value), name="odd", raw=True)
    with pytest.raises(UserError, match=r"has a descriptor of length (nan|3)"):
        evaluate(EvaluateConfig(**labelled | {"descriptors": (folder,)}))


def test_a_model_is_extracted_first(labelled, write_descriptors, monkeypatch):
    from dim.extract import job as extract_job

    asked = []

    def extract(config):
        asked.append(config)
        write_descriptors(IDS, VECTORS, name=config.out)

    monkeypatch.setattr(extract_job, "extract", extract)
    expected = evaluate(EvaluateConfig(**labelled | {"out": labelled["out"] + "-folder"}))
    model = {"descriptors": (), "model": ("vgg16-gem",), "split": "test", "image_size": 96}
    found = evaluate(EvaluateConfig(**labelled | model))
    assert found["map"] == expected["map"]
    (config,) = asked
    assert (config.model, config.manifest, config.split) == ("vgg16-gem", labelled["manifest"], "test")
    assert (config.out, config.image_size) == (labelled["out"] + "/descriptors-1", 96)


def test_a_baseline_of_an_evaluation_that_is_not_whole_is_refused(labelled, tmp_path, monkeypatch):
    before = evaluate(EvaluateConfig(**labelled, report=False))
    baseline = Path(labelled["out"]) / "metrics.json"
    again = labelled | {"out": str(tmp_path / "again")}

    def refused(said):
        with pytest.raises(UserError, match=said) as caught:
            evaluate(EvaluateConfig(**again, baseline=str(baseline), report=False))
        assert "\n" not in str(caught.value)
        assert not Path(again["out"]).exists()

    shutil.copytree(baseline.parent, tmp_path / "whole")
    per_query = baseline.parent / "per_query.parquet"
    table = pq.read_table(per_query)
    for other in (table.slice(1), table.set_column(2, "ap", table["ap"].take(np.roll(np.arange(len(table)), 1)))):
        pq.write_table(other, per_query)
        refused(r"per_query\.parquet' is not the file that its run\.json describes; make it again with evaluate\.py")
    per_query.unlink()
    found = evaluate(EvaluateConfig(**again, baseline=str(baseline), report=False))
    assert "against_baseline" not in found
    shutil.rmtree(again["out"])
    # Killed between its two files: one of another protocol, beside the old one.
    shutil.rmtree(baseline.parent)
    shutil.copytree(tmp_path / "whole", baseline.parent)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", dies_at("metrics.json", files.write_json))
        with pytest.raises(ZeroDivisionError):
            evaluate(EvaluateConfig(**labelled | {"protocol": "holidays"}, report=False))
    refused(r"'.*out' was never finished; run evaluate\.py again")
    # One that was copied elsewhere is taken as it is, and no strange per_query.parquet with it.
    for name in ("metrics.json", "baseline.json"):
        alone = tmp_path / name
        shutil.copy(tmp_path / "whole" / "metrics.json", alone)
        if name == "baseline.json":
            shutil.copy(tmp_path / "whole" / "per_query.parquet", tmp_path)
        found = evaluate(EvaluateConfig(**again, baseline=str(alone), report=False))
        assert found["map"] == before["map"] and "against_baseline" not in found


@pytest.mark.parametrize("name", ["manifest", "ground_truth"])
def test_a_table_that_changes_between_two_readings_ends_the_job(labelled, write_truth, monkeypatch, name):
    truth = write_truth((IDS[0], IDS[1], "good"))
    asked = labelled | {"protocol": "oxford", "ground_truth": truth, "report": False}
    read = descriptor_sets.read

    def changing(*arguments):  # a person corrects it while the descriptors are made
        Path(asked[name]).write_bytes(Path(asked[name]).read_bytes() + b" ")
        return read(*arguments)

    monkeypatch.setattr(descriptor_sets, "read", changing)
    with pytest.raises(UserError, match=r"' changed while this job ran; run the same command again") as caught:
        evaluate(EvaluateConfig(**asked))
    assert asked[name] in str(caught.value) and not Path(asked["out"]).exists()


def dies_at(name, write):
    def dying(uri, document):
        if uri.endswith(name):
            raise ZeroDivisionError
        write(uri, document)

    return dying
