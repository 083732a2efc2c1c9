"""Each method after the search against a loop over its definition."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from dim.errors import UserError
from dim.search import database, exact, reranking
from dim.search.database import Exact, from_array
from dim.search.exact import Part
from dim.search.expansion_methods import METHODS, apply, check
from dim.search.retrieval import Retrieval


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(seed, rows=60, queries=7, dimension=8):
    """Vectors round twelve centres, so that similarities of either sign occur; two of the rows are equal."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((12, dimension))
    found = unit(centres[random.integers(0, 12, rows + queries)] + 0.5 * random.standard_normal((rows + queries, 8)))
    found[5] = found[9]
    return found[rows:], found[:rows]


def searched(name, queries, database, k):
    if isinstance(database, np.ndarray):
        database = from_array(database, np.arange(len(database)))
    found, (step,) = apply(Retrieval(queries, database), [name], k)
    assert (step.method, step.neighbours) == (name, k)
    return found, np.array(list(found.scores()))


def dot(one, other):
    return math.fsum(float(a) * float(b) for a, b in zip(one, other, strict=True))


def listed(query, vectors, k, without=None):
    """The k rows nearest to `query` by a sort of all, and their similarities."""
    pairs = sorted((-dot(query, vector), row) for row, vector in enumerate(vectors) if row != without)[:k]
    return [(row, -score) for score, row in pairs]


def summed(vector, weighted):
    total = [float(value) for value in vector]
    for weight, other in weighted:
        total = [t + weight * float(o) for t, o in zip(total, other, strict=True)]
    length = math.sqrt(sum(t * t for t in total))
    return [t / length for t in total]


def naive_aqe(queries, vectors, k):
    return [summed(q, [(1.0, vectors[row]) for row, _ in listed(q, vectors, k)]) for q in queries], vectors


def naive_alpha_qe(queries, vectors, k):
    return [summed(q, [(max(0, s) ** 3, vectors[row]) for row, s in listed(q, vectors, k)]) for q in queries], vectors


def naive_dba(queries, vectors, k):
    near = [listed(vector, vectors, k, without=row) for row, vector in enumerate(vectors)]
    return queries, [
        summed(vector, [(max(0, s) ** 3, vectors[row]) for row, s in near[own]]) for own, vector in enumerate(vectors)
    ]


@pytest.mark.parametrize("k", [1, 5, 59, 100])
@pytest.mark.parametrize(("name", "naive"), [("aqe", naive_aqe), ("alpha-qe", naive_alpha_qe), ("dba", naive_dba)])
def test_what_moves_vectors_equals_a_naive_loop(name, naive, k):
    queries, vectors = clustered(0)
    found, scores = searched(name, queries, vectors, k)
    moved, database = naive(queries, vectors, k)
    np.testing.assert_allclose(found.queries, moved, atol=1e-5)
    np.testing.assert_allclose(found.database.take(np.arange(len(vectors))), database, atol=1e-5)
    np.testing.assert_allclose(scores, [[dot(q, d) for d in database] for q in moved], atol=1e-5)


def test_alpha_qe_adds_nothing_of_what_is_opposite():
    queries, vectors = np.array([[1, 0]], np.float32), np.array([[0.8, 0.6], [-1, 0]], np.float32)
    found, _ = searched("alpha-qe", queries, vectors, 2)
    np.testing.assert_allclose(found.queries[0], summed([1, 0], [(0.8**3, vectors[0])]), atol=1e-6)


def naive_k_reciprocal(query, vectors, k, without=None, k2=6, share=0.3):  # noqa: PLR0917
    near = [[row] + [other for other, _ in listed(v, vectors, k, without=row)] for row, v in enumerate(vectors)]

    def reciprocal(row, depth):
        return {other for other in near[row][: depth + 1] if row in near[other][: depth + 1]}

    def expanded(close):
        star = set(close)
        for row in close:
            half = reciprocal(row, round(k / 2))
            if len(half & close) > 2 / 3 * len(half):
                star |= half
        return star

    def encoding(vector, star, without=None):
        weights = {row: math.exp(-(1 - dot(vector, vectors[row]))) for row in star - {without}}
        return {row: weight / sum(weights.values()) for row, weight in weights.items()}

    def mean(codes):
        return {row: sum(code.get(row, 0) for code in codes) / len(codes) for row in set().union(*codes)}

    codes = [encoding(vectors[row], expanded(reciprocal(row, k))) for row in range(len(vectors))]
    averaged = [mean([codes[other] for other in near[row][:k2]]) for row in range(len(vectors))]
    mine = listed(query, vectors, k, without)
    mutual = {row for row, s in mine if s >= dot(vectors[row], vectors[near[row][-1]])}
    own = mean([encoding(query, expanded(mutual), without), *(codes[row] for row, _ in mine[: k2 - 1])])
    scores = []
    for row, code in enumerate(averaged):
        every = set(own) | set(code)
        lesser = sum(min(own.get(r, 0), code.get(r, 0)) for r in every)
        greater = sum(max(own.get(r, 0), code.get(r, 0)) for r in every)
        scores.append((1 - share) * lesser / greater + share * dot(query, vectors[row]))
    return scores


@pytest.mark.parametrize("k", [1, 2, 3, 8, 20, 59])
def test_k_reciprocal_equals_a_naive_loop(k):
    queries, vectors = clustered(1)
    queries = np.concatenate([queries, vectors[:2], -queries[:1]])  # also rows of the database, and one far from all
    _, scores = searched("k-reciprocal", queries, vectors, k)
    np.testing.assert_allclose(scores, [naive_k_reciprocal(q, vectors, k) for q in queries], atol=1e-5)


def naive_system(vectors, k):
    size = len(vectors)
    near = [dict(listed(vector, vectors, k, without=row)) for row, vector in enumerate(vectors)]
    affinity = [
        [max(0, near[i][j]) ** 3 if j in near[i] and i in near[j] else 0.0 for j in range(size)] for i in range(size)
    ]
    degree = [sum(row) for row in affinity]
    return [
        [
            (i == j) - (0.99 * affinity[i][j] / math.sqrt(degree[i] * degree[j]) if affinity[i][j] else 0)
            for j in range(size)
        ]
        for i in range(size)
    ]


def naive_gradients(system, y, steps):
    size = range(len(y))
    f, residual, direction = [0.0] * len(y), list(y), list(y)
    for _ in range(steps):
        if dot(residual, residual) <= 1e-12 * dot(y, y):
            break
        image = [dot(system[i], direction) for i in size]
        step = dot(residual, residual) / dot(direction, image)
        f = [f[i] + step * direction[i] for i in size]
        left = [residual[i] - step * image[i] for i in size]
        growth = dot(left, left) / dot(residual, residual)
        residual, direction = left, [left[i] + growth * direction[i] for i in size]
    return f


@pytest.mark.parametrize("k", [3, 10, 59])
def test_diffusion_equals_a_naive_loop(k):
    queries, vectors = clustered(2)
    _, scores = searched("diffusion", queries, vectors, k)
    system = naive_system(vectors, k)
    for query, row in zip(queries, scores, strict=True):
        y = [0.0] * len(vectors)
        for near, similarity in listed(query, vectors, 10):
            y[near] = max(0, similarity) ** 3
        f = naive_gradients(system, y, 20)
        expected = [value or dot(query, vectors[i]) - 2 for i, value in enumerate(f)]
        np.testing.assert_allclose(row, expected, atol=1e-5)


@pytest.mark.parametrize("k", [1, 5, 59])
@pytest.mark.parametrize("name", METHODS)
def test_a_query_whose_row_leaves_its_list_has_it_for_no_neighbour(name, k):
    _, vectors = clustered(6)
    own = np.array([3, 5, 9, -1])  # 5 and 9 are equal; the last query is in the database, but stays in its list
    queries = vectors[[3, 5, 9, 20]]
    search = Retrieval(queries, from_array(vectors, np.arange(len(vectors))), own=own)
    found, _ = apply(search, [name], k)
    rows = [None if row < 0 else row for row in own]
    system = naive_system(vectors, k)
    for query, without, row in zip(queries, rows, found.scores(), strict=True):
        near = listed(query, vectors, k, without)
        if name == "k-reciprocal":
            expected = naive_k_reciprocal(query, vectors, k, without=without)
        elif name == "diffusion":
            y = np.zeros(len(vectors))
            for other, similarity in listed(query, vectors, 10, without):
                y[other] = max(0, similarity) ** 3
            f = naive_gradients(system, y, 20)
            expected = [value or dot(query, vectors[i]) - 2 for i, value in enumerate(f)]
        else:
            power, moving = {"aqe": (0, near), "alpha-qe": (3, near), "dba": (0, [])}[name]
            moved = summed(query, [(max(0, s) ** power, vectors[other]) for other, s in moving])
            database = naive_dba(None, vectors, k)[1] if name == "dba" else vectors
            expected = [dot(moved, vector) for vector in database]
        if without is not None:
            expected[without] = -np.inf
        np.testing.assert_allclose(row, expected, atol=1e-5)
    for own_row, (listed_rows, *_) in zip(rows, found.best(60), strict=True):
        assert own_row not in listed_rows.tolist()
        assert len(listed_rows) == (60 if own_row is None else 59)


def test_diffusion_run_to_its_end_solves_the_system(monkeypatch):
    monkeypatch.setattr(reranking, "STEPS", 500)
    monkeypatch.setattr(reranking, "TOLERANCE", 1e-12)
    queries, vectors = clustered(3)
    _, scores = searched("diffusion", queries, vectors, 10)
    for query, row in zip(queries, scores, strict=True):
        y = np.zeros(len(vectors))
        for near, similarity in listed(query, vectors, 10):
            y[near] = max(0, similarity) ** 3
        solved = np.linalg.solve(naive_system(vectors, 10), y)
        np.testing.assert_allclose(row[solved > 1e-9], solved[solved > 1e-9], atol=1e-8)


@pytest.mark.parametrize("name", METHODS)
def test_blocks_from_disk_give_what_memory_gives_in_more_queries_than_one_pass_takes(name, monkeypatch):
    monkeypatch.setattr(database, "_WINDOW_ROWS", 500)
    monkeypatch.setattr(reranking, "_VALUES", 100 * 10 * 16)
    random = np.random.default_rng(4)
    vectors = unit(random.standard_normal((1100, 16)))
    queries = unit(random.standard_normal((5, 16)))
    spans = [(0, 1), (1, 400), (400, len(vectors))]
    parts = [Part(start, end - start, partial(vectors.__getitem__, slice(start, end))) for start, end in spans]
    _, scores = searched(name, queries, vectors, 10)
    cut, same = searched(name, queries, Exact(parts, np.arange(len(vectors))), 10)
    np.testing.assert_allclose(same, scores, atol=1e-6)
    for (rows, *_), row in zip(cut.best(20), same, strict=True):
        assert rows.tolist() == exact.best(row, 20, np.arange(len(vectors))).tolist()


@pytest.mark.parametrize("name", METHODS)
def test_equal_and_few_rows(name):
    vectors = np.repeat(np.eye(3, dtype=np.float32), [30, 1, 1], axis=0)
    _, scores = searched(name, vectors[:1], vectors, 4)
    assert np.isfinite(scores).all()
    assert len(set(scores[0, :30])) == 1 or name in ("k-reciprocal", "diffusion")
    assert scores[0, :30].min() > scores[0, 30:].max()
    _, scores = searched(name, vectors[:1], vectors[-1:], 4)
    assert scores.shape == (1, 1)


@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("blocks", [1, 2, 3, 7])
def test_neighbours_come_in_blocks_and_are_the_same(monkeypatch, blocks, k):
    _, vectors = clustered(7)
    monkeypatch.setattr(database, "_WINDOW_ROWS", -(-60 // blocks))
    found = list(database.neighbour_blocks(from_array(vectors, np.arange(60)), k))
    assert len(found) == blocks
    moved, rows, scores = map(np.concatenate, zip(*found, strict=True))
    assert np.array_equal(moved, vectors)
    for row, (others, cosines) in enumerate(zip(rows, scores, strict=True)):
        expected = listed(vectors[row], vectors, k, without=row)
        assert others.tolist() == [other for other, _ in expected]
        np.testing.assert_allclose(cosines, [cosine for _, cosine in expected], atol=1e-6)


def test_long_lists_come_in_smaller_blocks(monkeypatch):
    monkeypatch.setattr(database, "_WINDOW_ENTRIES", 60)
    _, vectors = clustered(7)
    blocks = [len(rows) for _, rows, _ in database.neighbour_blocks(from_array(vectors, np.arange(60)), 5)]
    assert blocks == [10] * 6


def test_a_step_that_finds_no_room_on_the_disk_is_refused(monkeypatch):
    monkeypatch.setattr(database.shutil, "disk_usage", lambda _: SimpleNamespace(free=60 * 8 * 4 - 1))
    queries, vectors = clustered(8)
    parts = [Part(0, 60, lambda: vectors)]
    with pytest.raises(
        UserError, match=r"the descriptors need a temporary file of 1,920 bytes, but .* has 1,919 bytes left"
    ):
        searched("dba", queries, Exact(parts, np.arange(60)), 3)
    searched("diffusion", queries, Exact(parts, np.arange(60)), 3)  # needs no vectors of single rows


def test_methods_follow_each_other():
    queries, vectors = clustered(5)
    search = Retrieval(queries, from_array(vectors, np.arange(len(vectors))))
    found, steps = apply(search, ["dba", "alpha-qe", "diffusion"], None)
    assert [(step.method, step.neighbours) for step in steps] == [("dba", 50), ("alpha-qe", 50), ("diffusion", 50)]
    _, augmented = naive_dba(queries, vectors, 50)
    moved, _ = naive_alpha_qe(queries, np.array(augmented), 50)
    np.testing.assert_allclose(found.queries, moved, atol=1e-5)
    list(found.scores())
    assert all(step.seconds > 0 for step in steps)


def test_what_can_not_follow_is_refused():
    check(["dba", "aqe", "aqe", "diffusion"], 3)
    with pytest.raises(UserError, match="--expansion diffusion replaces the scores, so it must be the last"):
        check(["diffusion", "aqe"], None)
    check(["dba", "aqe"], 3, "localise")
    with pytest.raises(UserError, match="so it must be the last, and without --rerank"):
        check(["dba", "diffusion"], 3, "localise")
    with pytest.raises(UserError, match="--neighbours must be from 1 to 100000, not 0"):
        check(["aqe"], 0)
    with pytest.raises(UserError, match="--neighbours must be from 1 to 100000, not 100001"):
        check(["aqe"], 100_001)
    with pytest.raises(UserError, match="goes with --expansion"):
        check([], 5)
