"""Pairs that are all but the same, against a loop over all pairs, for bursts of every size."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dim.audit import duplicates as module
from dim.audit import neighbours
from dim.audit import photos as audited
from dim.audit.config import AuditConfig
from dim.audit.job import audit
from dim.audit.suspects import Suspect
from dim.search.database import parts_of

LEAST = 0.95


def bursts(size, generator, objects=3, dimension=24):
    """Unit vectors of `objects` bursts, half of each on one side, half on another, and as many that are alone."""
    centres = generator.standard_normal((objects, dimension))
    near = centres[np.repeat(np.arange(objects), 2 * size)]
    vectors = np.concatenate([near, generator.standard_normal((2 * size, dimension))])
    vectors += 0.1 * generator.standard_normal(vectors.shape)
    sides = np.concatenate([np.repeat(np.arange(2 * objects), size), generator.integers(0, 2 * objects, 2 * size)])
    order = generator.permutation(len(vectors))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return vectors[order], sides[order]


def naive(vectors, sides):
    pairs = {}
    for one in range(len(vectors)):
        for other in range(one + 1, len(vectors)):
            cosine = float(vectors[one].astype(np.float64) @ vectors[other])
            if cosine >= LEAST and sides[one] != sides[other]:
                pairs[one, other] = cosine
    return pairs


def found(vectors, sides, factory=None, **machine):
    ids = pa.chunked_array([pa.array([f"{row:04d}" for row in range(len(vectors))])])
    labels = pa.array([f"{side}" for side in sides])
    photos = audited.of(parts_of(vectors), ids, labels, pa.nulls(len(ids), pa.string()), **machine)
    near = neighbours.by_index(photos, factory, None) if factory else neighbours.by_comparison(photos)
    pairs, total = module.listed(photos, module.near_pairs(photos, near, LEAST))
    return [Suspect(int(one), "duplicate", score, int(other), pairs) for one, other, score, pairs in pairs], total


def group(sides, one, other):
    return frozenset((sides[one], sides[other]))


@pytest.mark.parametrize("size", [2, 3, 5, 8, 12, 25, 50])
@pytest.mark.parametrize("most", [module.PAIRS_IN_ALL, 40])
def test_bursts_equal_a_naive_loop(monkeypatch, size, most):
    monkeypatch.setattr(module, "PAIRS_IN_ALL", most)
    vectors, sides = bursts(size, np.random.default_rng(size))
    expected = naive(vectors, sides)
    assert expected
    listed, total = found(vectors, sides)
    assert total == len(expected)
    groups = [group(sides, *pair) for pair in expected]
    best = {}
    for pair in sorted(expected, key=lambda pair: -expected[pair]):
        of = best.setdefault(group(sides, *pair), [])
        of += [pair] if len(of) < module.PAIRS_OF_A_GROUP else []
    kept = sorted((pair for of in best.values() for pair in of), key=lambda pair: -expected[pair])[:most]
    assert [one.score for one in listed] == pytest.approx([expected[pair] for pair in kept], abs=1e-6)
    assert len({(one.row, one.other) for one in listed}) == len(listed)
    for one in listed:
        assert one.score == pytest.approx(expected[one.row, one.other], abs=1e-6)
        assert one.pairs == groups.count(group(sides, one.row, one.other))


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("share", [2**30, 1])
def test_an_index_proposes_pairs_whose_cosines_are_exact(size, share):
    vectors, sides = bursts(size, np.random.default_rng(size))
    for factory in ("Flat", "SQ8", "HNSW8"):
        (exactly, total), (proposed, count) = found(vectors, sides), found(vectors, sides, factory, share=share)
        assert (proposed, count) == (exactly, total)


def test_a_pair_that_an_index_finds_from_both_sides_or_from_one_is_counted_once():
    vectors, sides = bursts(3, np.random.default_rng(0))
    ids = pa.chunked_array([pa.array([f"{row:04d}" for row in range(len(vectors))])])
    photos = audited.of(
        parts_of(vectors), ids, pa.array([f"{side}" for side in sides]), pa.nulls(len(ids), pa.string())
    )
    near = neighbours.by_comparison(photos)
    expected = naive(vectors, sides)
    for drop in ("none", "lower", "upper"):
        rows = near.rows.copy()
        own = np.arange(len(rows))[:, None]
        rows[{"none": rows < 0, "lower": rows < own, "upper": rows > own}[drop]] = -1
        scores = np.where(rows < 0, -np.inf, near.scores)
        pairs = module.near_pairs(photos, neighbours.Neighbours(rows, scores, proposed=True), LEAST)
        assert module.listed(photos, pairs)[1] == len(expected)


def test_of_one_burst_the_nearest_are_listed_and_another_is_not_crowded_out(monkeypatch):
    monkeypatch.setattr(module, "PAIRS_OF_A_GROUP", 5)
    vectors, sides = bursts(12, np.random.default_rng(0))
    expected = naive(vectors, sides)
    listed, total = found(vectors, sides)
    assert total == len(expected) > 3 * 100
    for of in {group(sides, *pair) for pair in expected}:
        cosines = sorted((c for pair, c in expected.items() if group(sides, *pair) == of), reverse=True)
        mine = [one.score for one in listed if group(sides, one.row, one.other) == of]
        assert mine == pytest.approx(cosines[:5], abs=1e-6)


def test_a_burst_in_two_splits_is_listed(write_manifest, write_descriptors, tmp_path, caplog, monkeypatch):
    generator = np.random.default_rng(0)
    labels = ["burst"] * 24 + [f"other {number // 2}" for number in range(12)]
    splits = ["train", "test"] * 12 + ["train"] * 12
    vectors = np.concatenate([np.ones((24, 32)), generator.standard_normal((12, 32))])
    vectors += 0.1 * generator.standard_normal(vectors.shape)
    ids = [f"{row:02d}" for row in range(36)]
    manifest = write_manifest(image_id=ids, label=labels, split=splits)
    config = AuditConfig(manifest=manifest, descriptors=write_descriptors(ids, vectors), out=str(tmp_path / "out"))
    result = audit(config)
    assert (result["duplicate"], result["duplicate_pairs"]) == (144, 144)
    rows = pq.read_table(tmp_path / "out" / "suspects.parquet").to_pylist()
    pairs = [row for row in rows if row["kind"] == "duplicate"]
    assert {(row["label"], row["other_label"], row["pairs"]) for row in pairs} == {("burst", "burst", 144)}
    assert all({row["split"], row["other_split"]} == {"train", "test"} for row in pairs)
    assert (tmp_path / "out" / "report.html").read_text().count("1 of 144 pairs") == 2  # its caption and its alt
    monkeypatch.setattr(module, "PAIRS_OF_A_GROUP", 20)
    result = audit(config)
    assert (result["duplicate"], result["duplicate_pairs"]) == (20, 144)
    assert "there are 144 pairs of duplicates; the 20 nearest are listed" in caplog.text
