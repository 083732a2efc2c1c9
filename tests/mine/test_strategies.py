"""Each strategy against a naive triple loop, for several sizes of blocks and numbers of parts."""

import dataclasses
import itertools
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import Here

from dim.errors import UserError
from dim.mine import mining, remote
from dim.mine.config import Mining
from dim.mine.mining import check_candidates, mine
from dim.mine.pool import check_labels
from dim.search.exact import Part

STRATEGIES = ("distinct", "hardest", "random")


@pytest.fixture(autouse=True, scope="module")
def in_this_process():
    """References are the values themselves, and `distinct` may have fewer labels than negatives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "ray", SimpleNamespace(get=lambda value: value))
        patch.setattr(mining, "check_labels", lambda *_: None)
        yield


def parts_of(vectors, count=1):
    """`vectors` in `count` parts."""
    ends = np.linspace(0, len(vectors), count + 1).astype(int).tolist()
    return [Part(a, b - a, partial(np.copy, vectors[a:b])) for a, b in itertools.pairwise(ends) if a < b]


def mined(data, options, block_rows, parts=1, share=2**30):
    """The triplets as `mine` finds them, but in this process."""
    vectors, labels, ids = data
    settings = {"remote": Here(), "share": share, "block_rows": block_rows}
    return mine(parts_of(vectors, parts), labels, ids, options, **settings).whole()


def rows_of(triplets, ids):
    names = ("anchors", "positives", "negatives")
    columns = [ids[getattr(triplets, name)] for name in names]
    return list(zip(*columns, triplets.distance_ap, triplets.distance_an, triplets.loss, strict=True))


def naive_distance(x, y):
    return np.float32(((x.astype(np.float64) - y.astype(np.float64)) ** 2).sum())


def naive_candidates(vectors, labels, ids, options):
    """(anchor, positive, negative, distance_ap, distance_an) of `hardest`, `distinct`, or of all triplets there are."""
    everything = options.strategy == "random"
    used = [i for i in range(len(ids)) if labels[i] is not None]
    for a in used:
        to = {b: naive_distance(vectors[a], vectors[b]) for b in used}
        positives = sorted((b for b in used if labels[b] == labels[a] and b != a), key=lambda b: (-to[b], ids[b]))
        negatives = []
        for b in sorted((b for b in used if labels[b] != labels[a]), key=lambda b: (to[b], ids[b])):
            if options.max_similarity is not None and 1 - float(to[b]) / 2 > options.max_similarity:
                continue
            if options.strategy == "distinct" and labels[b] in {labels[n] for n in negatives}:
                continue
            negatives.append(b)
        positives = positives if everything else positives[: options.positives_per_anchor]
        negatives = negatives if everything else negatives[: options.negatives_per_anchor]
        yield from ((ids[a], ids[p], ids[n], to[p], to[n]) for p in positives for n in negatives)


def naive(data, options):
    """All candidates, the active ones ranked, the kept ones."""
    candidates = list(naive_candidates(*data, options))
    losses = [(*c, np.float32(options.margin + float(c[3]) - float(c[4]))) for c in candidates]
    ranked = sorted((row for row in losses if row[5] > 0), key=lambda row: (-row[5], *row[:3]))
    return candidates, ranked, ranked[: options.top]


def dataset(seed, n, n_labels, *, dimension=8, repeats=0, unlabelled=0.1, noise=1.0):
    """Vectors round their label's centre; `repeats` of them are copies of others, so that many distances tie."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, n_labels, n)
    vectors = random.standard_normal((n_labels, dimension))[codes] + noise * random.standard_normal((n, dimension))
    copies = random.integers(0, n, (2, repeats))
    vectors[copies[0]] = vectors[copies[1]]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    labels = np.array([None if random.random() < unlabelled else f"label {code}" for code in codes], dtype=object)
    ids = np.array([f"{i:04d}" for i in random.permutation(n)], dtype=object)
    return vectors, labels, ids


DATA = {
    "plain": dataset(0, 90, 9),
    "ties": dataset(1, 90, 9, dimension=3, repeats=120),
    "two large labels": dataset(2, 70, 2),
    "many small labels": dataset(3, 80, 50),
    "nearly collapsed": dataset(4, 60, 6, noise=1e-6),
    "six images": dataset(5, 6, 2, unlabelled=0),
}


def all_equal(dimension=4):
    vectors = np.zeros((40, dimension), dtype=np.float32)
    vectors[:, 0] = 1
    return vectors, *dataset(6, 40, 7)[1:]


@pytest.mark.parametrize(("block_rows", "parts"), [(1, 3), (7, 1), (7, 5), (32, 2), (1000, 1)])
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize(
    "options",
    [
        Mining(),
        Mining(top=37, margin=0.3, positives_per_anchor=2, negatives_per_anchor=3),
        Mining(max_similarity=0.9, margin=0.5),
        Mining(strategy="distinct", negatives_per_anchor=1, top=50),
        Mining(strategy="distinct", negatives_per_anchor=4, max_similarity=0.8, margin=0.5),
    ],
    ids=str,
)
def test_hardest_equals_a_naive_loop(name, options, block_rows, parts):
    data = DATA[name]
    candidates, ranked, kept = naive(data, options)
    triplets = mined(data, options, block_rows, parts)
    assert (triplets.candidates, triplets.active, triplets.kept) == (len(candidates), len(ranked), len(kept))
    assert rows_of(triplets, data[2]) == kept


@pytest.mark.parametrize("name", ["plain", "two large labels", "many small labels", "six images"])
@pytest.mark.parametrize(
    "options",
    [
        Mining(candidates="Flat"),
        Mining(candidates="IVF2,Flat", candidate_parameters="nprobe=2", top=37, margin=0.3, max_similarity=0.9),
        Mining(candidates="Flat", strategy="distinct", negatives_per_anchor=1),
    ],
    ids=str,
)
def test_with_an_index_that_finds_all_it_is_the_same(name, options):
    data = DATA[name]
    expected = rows_of(
        mined(data, dataclasses.replace(options, candidates=None, candidate_parameters=None), 32, 1), data[2]
    )
    for block_rows, parts, share in ((7, 5, 1), (7, 2, 3 * 7 * 4 * 8 * 3), (32, 2, 1), (1000, 1, 2**30)):
        assert rows_of(mined(data, options, block_rows, parts, share), data[2]) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": "HNWS32"}, "--candidates 'HNWS32' is not an FAISS index for 8 values"),
        ({"candidates": "HNSW32", "candidate_parameters": "nprobe=3"}, "'nprobe=3' can't be set on this index"),
        ({"candidate_parameters": "nprobe=3"}, "give --candidates FACTORY"),
        ({"candidates": "HNSW32", "strategy": "random"}, "--strategy random draws them"),
    ],
)
def test_an_index_that_cannot_be_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        check_candidates(Mining(**options), 8)


@pytest.mark.parametrize("strategy", ["hardest", "distinct"])
def test_ties_of_equal_images_fall_to_the_ids(strategy):
    data, options = all_equal(), Mining(strategy=strategy, top=100)
    for block_rows in (3, 16, 64):
        assert rows_of(mined(data, options, block_rows, 2), data[2]) == naive(data, options)[2]


@pytest.mark.parametrize("max_similarity", [None, 0.5])
def test_enough_random_draws_find_every_triplet(max_similarity):
    data = dataset(7, 24, 5)
    options = Mining(strategy="random", candidates_per_pair=3000, margin=0.4, max_similarity=max_similarity)
    triplets = mined(data, options, 5, 3)
    assert rows_of(triplets, data[2]) == naive(data, options)[1]
    assert triplets.active == triplets.kept


def test_random_draws_the_prototypes_number_of_candidates():
    data = dataset(8, 300, 14, unlabelled=0)
    options = Mining(strategy="random", top=1600, margin=1)
    triplets = mined(data, options, 64, 3)
    assert triplets.candidates == 70 * 14 * 13 == 12_740
    anchors, positives, negatives = (data[1][getattr(triplets, n)] for n in ("anchors", "positives", "negatives"))
    assert triplets.kept == 1600 < triplets.active <= 12_740
    assert (anchors == positives).all() and (anchors != negatives).all()
    assert (triplets.anchors != triplets.positives).all()
    rows = rows_of(triplets, data[2])
    assert len(set(rows)) == len(rows)
    assert rows == sorted(rows, key=lambda row: (-row[5], *row[:3]))


def test_random_draws_are_uniform():
    vectors, _, ids = dataset(9, 12, 2)
    data = vectors, np.array(list("aaaaaabbbbbb"), dtype=object), ids
    options = Mining(strategy="random", candidates_per_pair=7, margin=10)
    drawn = [rows_of(mined(data, dataclasses.replace(options, seed=seed), 5, 1), ids) for seed in range(400)]
    assert drawn[0] != drawn[1]
    counts = np.unique([row[0] + row[1] + row[2] for rows in drawn for row in rows], return_counts=True)[1]
    assert len(counts) == 2 * 6 * 5 * 6
    expected = 400 * 7 / (6 * 5 * 6)
    assert ((counts - expected) ** 2 / expected).sum() < 1.3 * len(counts)  # chi-squared, six deviations


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    block_rows=st.integers(1, 50),
    parts=st.integers(1, 6),
    strategy=st.sampled_from(STRATEGIES),
    repeats=st.sampled_from([0, 60]),
    top=st.sampled_from([None, 1, 20]),
)
def test_same_triplets_for_any_blocks_and_parts(*, seed, block_rows, parts, strategy, repeats, top):
    data = dataset(seed, 40, 8, dimension=16, repeats=repeats)
    options = Mining(strategy=strategy, negatives_per_anchor=2, candidates_per_pair=6, top=top, margin=0.5)
    one, other = mined(data, options, 1000, 1), mined(data, options, block_rows, parts)
    assert rows_of(one, data[2]) == rows_of(other, data[2])
    assert one.summary() == other.summary()


def test_order_of_the_rows_does_not_matter():
    vectors, labels, ids = dataset(10, 60, 6)
    order = np.random.default_rng(0).permutation(60)
    for strategy in STRATEGIES:
        options = Mining(strategy=strategy, negatives_per_anchor=3)
        one = rows_of(mined((vectors, labels, ids), options, 16, 2), ids)
        assert rows_of(mined((vectors[order], labels[order], ids[order]), options, 16, 2), ids[order]) == one


def test_no_active_triplet():
    vectors = np.eye(2, dtype=np.float32)[[0, 0, 1, 1]]
    data = vectors, np.array(list("aabb"), dtype=object), np.array(list("1234"), dtype=object)
    summary = mined(data, Mining(), 3, 1).summary()
    assert summary == {
        "candidates": 8,
        "active": 0,
        "kept": 0,
        "mean_distance_ap": None,
        "mean_distance_an": None,
    }


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["a", "a", None], Mining(), "has 1 label"),
        ([None, None], Mining(), "has 0 label"),
        (["a", "b", "c"], Mining(), "none of its 3 labels has two images"),
        (["a", "a", "b"], Mining(strategy="distinct"), "needs 6"),
    ],
)
def test_labels_that_give_no_triplet_are_refused(labels, options, message):
    with pytest.raises(UserError, match=message):
        check_labels(np.array(labels, dtype=object), options, "the training set")


@pytest.mark.parametrize("wrong", [np.nan, 0.0, 3.0])
def test_rows_that_are_not_normalised_are_refused_if_they_have_a_label(wrong):
    vectors, labels, ids = dataset(11, 30, 4, unlabelled=0)
    vectors[17] *= wrong
    with pytest.raises(UserError, match=f"1 descriptors are not L2-normalised; the norm of image '{ids[17]}' is"):
        mined((vectors, labels, ids), Mining(), 8, 2)
    labels[17] = None
    assert mined((vectors, labels, ids), Mining(), 8, 2).kept


@pytest.mark.parametrize(("name", "value"), [("top", 0), ("positives_per_anchor", 0), ("margin", float("nan"))])
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(UserError, match="must be at least"):
        Mining(**{name: value})
