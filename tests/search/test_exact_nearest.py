import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim.app import tasks
from dim.search import best_rows, exact, exact_scores
from dim.search.database import Exact, from_array
from dim.search.exact import Part
from dim.search.exact import nearest as found_by


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def by_scores(queries, vectors, place, count):
    """What `nearest` must return, from the scores of all rows."""
    rows = np.full((len(queries), count), -1)
    scores = np.full((len(queries), count), -np.inf)
    for query, row in enumerate(exact_scores.scores(queries, [vectors], len(vectors))):
        best = exact.best(row, count, place)
        rows[query, : len(best)], scores[query, : len(best)] = best, row[best]
    return rows, scores


def cut(vectors, sizes):
    starts = np.concatenate([[0], np.cumsum(np.resize(sizes, len(vectors)))])
    starts = starts[starts < len(vectors)]
    blocks = np.split(vectors, starts[1:])
    return [Part(start, len(block), lambda block=block: block) for start, block in zip(starts, blocks, strict=True)]


def rows_of(kind, random, count, dimension):
    if kind == "ties":  # few values, so that many scores are equal
        return unit(random.integers(-1, 2, (count, dimension)) + 0.25)
    if kind == "near ties":  # closer than float32 products tell apart
        return unit(np.ones(dimension) + 1e-6 * random.standard_normal((count, dimension)))
    return unit(random.standard_normal((count, dimension)))


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


@pytest.fixture
def small_blocks(monkeypatch):
    """Makes blocks and units so small that a few rows and queries fill several of each."""
    sizes = {"QUERIES": 8, "COLUMNS": 16, "_UNIT_ROWS": 33, "UNIT_QUERIES": 20}
    for name, value in sizes.items():
        monkeypatch.setattr(exact, name, value)
    monkeypatch.setattr(exact_scores, "_PAIRS", 7)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["ties", "near ties", "any"]),
    seed=st.integers(0, 10**6),
    dimension=st.sampled_from([1, 3, 64, 512]),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    count=st.sampled_from([1, 2, 7, 90, 200]),
)
def test_nearest_equals_the_best_of_all_scores_for_any_parts(kind, seed, dimension, sizes, count):
    random = np.random.default_rng(seed)
    queries, vectors = rows_of(kind, random, 9, dimension), rows_of(kind, random, 90, dimension)
    place = random.permutation(90)
    assert_same(found_by(queries, cut(vectors, sizes), place, count), by_scores(queries, vectors, place, count))


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_any_number_of_parts_and_workers_gives_the_same(small_blocks, monkeypatch, parts, workers):
    monkeypatch.setattr(tasks.ray, "is_initialized", lambda: False)
    random = np.random.default_rng(0)
    queries, vectors = rows_of("ties", random, 50, 12), rows_of("ties", random, 210, 12)
    place = random.permutation(210)
    expected = by_scores(queries, vectors, place, 10)
    split = cut(vectors, [-(-210 // parts)])
    assert len(split) == parts
    assert_same(found_by(queries, split, place, 10, workers), expected)
    assert_same(Exact(split, place, workers=workers).nearest(queries, 10), expected)


@pytest.mark.parametrize("count", [1, 5, 40])
def test_thresholds_of_a_block_from_the_maxima_of_groups(count, monkeypatch):
    monkeypatch.setattr(tasks.ray, "is_initialized", lambda: False)
    random = np.random.default_rng(1)
    queries, vectors = rows_of("any", random, 6, 32), rows_of("any", random, 5000, 32)
    reached = best_rows.reached(queries @ vectors.T, count)
    for query, least in zip(queries, reached, strict=True):
        assert np.sort(query @ vectors.T)[-count] >= least - 1e-6
    assert_same(found_by(queries, cut(vectors, [5000]), np.arange(5000), count),
                by_scores(queries, vectors, np.arange(5000), count))  # fmt: skip


def test_few_rows_are_scored_exactly(monkeypatch):
    """A screening that lets most rows pass would be right, but slow."""
    monkeypatch.setattr(tasks.ray, "is_initialized", lambda: False)
    scored = []

    class Counting(exact.BestRows):
        def insert(self, queries, rows, scores):
            scored.append(len(rows))
            super().insert(queries, rows, scores)

    monkeypatch.setattr(exact, "BestRows", Counting)
    random = np.random.default_rng(2)
    queries, vectors = rows_of("any", random, 20, 64), rows_of("any", random, 20_000, 64)
    found_by(queries, cut(vectors, [4096]), np.arange(20_000), 10, 1)
    assert sum(scored) < 20 * 10 * 8


def test_tasks_give_what_threads_give(ray_session):
    random = np.random.default_rng(3)
    vectors = rows_of("any", random, 9000, 16)
    database = from_array(vectors, random.permutation(9000))
    assert len(database.parts) == 2
    assert_same(database.nearest(vectors[:30], 7), by_scores(vectors[:30], vectors, database.tie_order, 7))


@pytest.mark.parametrize("kind", ["ties", "near ties", "any"])
def test_a_gpu_gives_what_cpus_give(monkeypatch, kind):
    """TensorFlow's products, here of a CPU, go through the same screening."""
    asked = []

    def spread(work, units, shared, *, workers, gpus):
        asked.append((workers, gpus))
        return ((number, work(unit, *shared)) for number, unit in enumerate(units))

    monkeypatch.setattr(tasks, "spread", spread)
    monkeypatch.setattr(tasks, "gpus_of_a_call", lambda wanted: 1.0 if wanted is None else wanted)
    random = np.random.default_rng(4)
    queries, vectors = rows_of(kind, random, 20, 64), rows_of(kind, random, 300, 64)
    parts, place = cut(vectors, [70]), random.permutation(300)
    expected = by_scores(queries, vectors, place, 9)
    assert_same(found_by(queries, parts, place, 9), expected)
    assert_same(found_by(queries, parts, place, 9, gpus=0.5), expected)
    monkeypatch.setattr(exact, "_GPU_PAIRS", 20 * 300)
    assert_same(found_by(queries, parts, place, 9), expected)
    assert_same(found_by(queries, parts, place, 9, gpus=0.0), expected)
    assert asked == [(None, 0.0), (None, 0.5), (None, 1.0), (None, 0.0)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_descriptors_of_photos(shared, dtype):
    with np.load(shared("oracle/offtheshelf_descriptors.npz")) as arrays:
        vectors = unit(arrays["gem_block5_conv3"].astype(dtype).astype(np.float32))
    place = np.random.default_rng(0).permutation(len(vectors))
    assert_same(found_by(vectors, cut(vectors, [100, 7]), place, 20), by_scores(vectors, vectors, place, 20))


def test_no_query():
    rows, scores = found_by(np.zeros((0, 4), np.float32), cut(np.eye(4, dtype=np.float32), [2]), np.arange(4), 3)
    assert rows.shape == scores.shape == (0, 3)
