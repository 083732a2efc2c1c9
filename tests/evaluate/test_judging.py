"""The parts of an evaluation against naive loops, and its results for any division of the work."""

from pathlib import Path

import numpy as np
import pytest
from marks import slow

from dim.app import tasks
from dim.data import ground_truth, manifest
from dim.errors import UserError
from dim.evaluate import judging
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import evaluate
from dim.evaluate.protocols import PROTOCOLS
from dim.evaluate.task import RetrievalTask
from dim.search import ranks

RNG = np.random.default_rng(5)
IDS = [f"p{number:02d}" for number in RNG.permutation(40)]
LABELS = [None if row % 11 == 0 else f"l{row % 9}" if row < 36 else f"alone{row}" for row in range(40)]
QUERIES, DATABASE = range(25), [*range(30, 40), *range(18)]  # rows of the one manifest; some are in both


def task_of(uri, protocol, truth=None):
    photos = manifest.read(uri)
    chosen = (manifest.Manifest(uri, photos.table.take(list(rows))) for rows in (QUERIES, DATABASE))
    return RetrievalTask(PROTOCOLS[protocol], *chosen, truth and ground_truth.read(truth, photos))


def graded_naively(task, query, by_truth):
    """(row, grade) of each photo of the database that is graded for the query, in order."""
    own, found = task.queries.image_ids[query], []
    for row, image_id in enumerate(task.database.image_ids):
        if by_truth is None:
            label = task.queries.labels[query]
            grade = "good" if label is not None and task.database.labels[row] == label else None
        else:
            grade = by_truth.get((own, image_id))
        if grade and not (task.protocol.excludes_query and image_id == own):
            found.append((row, grade))
    return found


@pytest.mark.parametrize("protocol", ["labels", "ukbench", "gldv2", "revisited"])
def test_graded_rows_and_positives_equal_a_naive_loop(write_manifest, write_truth, protocol):
    uri, truth, by_truth = write_manifest(image_id=IDS, label=LABELS), None, None
    if PROTOCOLS[protocol].graded:
        grades = sorted(PROTOCOLS[protocol].grades)
        by_truth = {
            (IDS[query], IDS[row]): grades[(query * row) % len(grades)]
            for query in QUERIES
            for row in DATABASE
            if (query * 7 + row) % 5 == 0
        }
        truth = write_truth(*((*pair, grade) for pair, grade in by_truth.items()), (IDS[24], IDS[24 % 18], "junk"))
        by_truth[IDS[24], IDS[24 % 18]] = "junk"
        by_truth |= {(IDS[query], ""): "" for query in QUERIES}
    task = task_of(uri, protocol, truth)
    chosen = RNG.permutation(len(QUERIES))[:20]
    found = task.graded(chosen)
    for place, query in enumerate(chosen.tolist()):
        mine = found.queries == place
        pairs = [(row, found.names[grade]) for row, grade in zip(found.rows[mine], found.grades[mine], strict=True)]
        expected = graded_naively(task, query, by_truth)
        assert sorted(pairs) == sorted(expected)
        assert task.has_positive[query] == any(grade in task.protocol.level.positive for _, grade in expected)
    assert (np.diff(found.queries) >= 0).all()


def test_an_image_that_is_not_searched_is_named(write_manifest, write_truth):
    task = task_of(write_manifest(image_id=IDS, label=LABELS), "oxford", write_truth(
        *((IDS[query], IDS[0], "good") for query in QUERIES), (IDS[3], IDS[20], "ok")
    ))  # fmt: skip
    with pytest.raises(UserError, match=f"grades '{IDS[20]}' for '{IDS[3]}', but it is not in the database"):
        task.has_positive  # noqa: B018  (the property reads the ground truth)


@pytest.mark.parametrize(
    ("queries", "database", "found"),
    [
        (["a.jpg", "b.jpg"], ["c.jpg", "d.jpg"], False),
        (["a.jpg", "b.jpg"], ["c.jpg", "b.jpg"], True),
        (["{}/a.jpg", "b.jpg"], ["c.jpg", "a.jpg"], True),
        (["a.jpg", "b.jpg"], ["{}/b.jpg", "{}/c.jpg"], True),
    ],
)
def test_a_query_is_in_the_database_however_its_path_is_written(write_manifest, tmp_path, queries, database, found):
    paths = [path.format(tmp_path) for path in (*queries, *database)]
    uri = write_manifest(image_id=["q", "r", "s", "t"], path=paths, role=["query"] * 2 + ["database"] * 2)
    photos = manifest.read(uri)
    task = RetrievalTask(PROTOCOLS["labels"], photos.select(role="query"), photos.select(role="database"))
    assert task.query_in_database is found


@pytest.fixture
def config(write_manifest, write_descriptors, tmp_path):
    vectors = RNG.integers(-1, 2, (40, 6)) + 0.25  # few values, so that many scores tie
    folder = write_descriptors(IDS, vectors, errors=(IDS[4], IDS[33]))
    more = [f"p{number:02d}x" for number in range(9)]
    return EvaluateConfig(
        manifest=write_manifest(image_id=IDS, label=LABELS),
        descriptors=(folder,),
        distractors=write_manifest("more.csv", image_id=more),
        distractor_descriptors=(write_descriptors(more, vectors[:9], name="more"),),
        out=str(tmp_path / "out"),
        report=False,
    )


def files_of(config):
    return [(Path(config.out) / name).read_bytes() for name in ("metrics.json", "per_query.parquet")]


@pytest.mark.parametrize("queries", [3, *slow(1, 2, 7)])
def test_queries_judged_in_chunks_give_the_same_files(config, monkeypatch, queries):
    evaluate(config)
    expected = files_of(config)
    chunks = []

    def chunked(task, found, *_):
        chunks.append([slice(start, start + queries) for start in range(0, len(found.rows), queries)])
        return iter(chunks[-1])

    monkeypatch.setattr(judging, "_chunks", chunked)
    monkeypatch.setattr(ranks, "ROWS", 1)
    monkeypatch.setattr(ranks, "CELLS", 1)
    monkeypatch.setattr(ranks, "_QUERIES", 2)
    evaluate(config)
    assert files_of(config) == expected
    assert len(chunks[0]) == -(-38 // queries)


@pytest.mark.parametrize("more", [0, 90])
def test_chunks_take_their_share_and_hold_each_query_once(write_manifest, more):
    class Found:
        rows, vectors = RNG.permutation(len(QUERIES)), np.zeros((len(QUERIES), 4), np.float32)

    task = task_of(write_manifest(image_id=IDS, label=LABELS), "labels")
    taken = 2 * 4 * 4 + more + 64 * task.graded_counts[Found.rows]
    for share in (1, 100, 500, 10**6):
        chunks = list(judging._chunks(task, Found, share, more))
        assert np.concatenate([np.arange(len(QUERIES))[chunk] for chunk in chunks]).tolist() == [*range(len(QUERIES))]
        assert all(taken[chunk].sum() <= share + taken.max() for chunk in chunks)
        assert (len(chunks) == 1) == (share == 10**6)


def test_ray_tasks_give_the_same_files_as_threads(config, ray_session, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tasks.ray, "is_initialized", lambda: False)
        evaluate(config)
    expected, sent = files_of(config), []

    def by_tasks(work, units, *rest):
        sent.extend(units)
        return run(work, units, *rest)

    run = tasks._by_tasks
    monkeypatch.setattr(tasks, "_by_tasks", by_tasks)
    monkeypatch.setattr(ranks, "ROWS", 10)
    evaluate(config)
    assert len(sent) > 4
    assert files_of(config) == expected
