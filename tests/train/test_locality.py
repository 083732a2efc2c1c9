"""Who works on which photos: those of one object on one machine, as many for each worker, and so in the next run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim.train.locality import ownership
from dim.train.training_set import TrainingPhotos


def photos(labels, splits=None):
    ids = np.array([f"p{row}" for row in range(len(labels))], dtype=object)
    splits = np.array(splits or ["train"] * len(labels), dtype=object)
    empty = [""] * len(labels)
    return TrainingPhotos(ids, np.array(labels, dtype=object), splits, empty, [None] * len(labels), empty, 32, "squash")


def of_objects(objects, each):
    return photos([f"object {row // each}" for row in range(objects * each)])


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.sampled_from(["train", "val", None])), max_size=60),
    st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=5),
    st.sets(st.integers(0, 59)),
)
def test_each_row_is_one_worker_s(rows, names, asked):
    made = photos(*map(list, zip(*rows, strict=True))) if rows else photos([])
    wanted = np.array(sorted(row for row in asked if row < len(rows)), np.int64)
    found = ownership(made, names)
    shares = [found.rows(wanted, worker).tolist() for worker in range(len(names))]
    assert sorted(row for share in shares for row in share) == wanted.tolist()


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c", "d"], ["a", "a", "b", "b"], ["a", "b", "b"]])
def test_objects_stay_whole_and_workers_get_equally_many(names):
    made = of_objects(objects=60, each=7)
    found = ownership(made, names)
    machines = found.owners.reshape(60, 7)
    assert (machines == machines[:, :1]).all()
    sizes = [len(found.rows(np.arange(420), worker)) for worker in range(len(names))]
    assert max(sizes) <= 1.05 * 420 / len(names) + 1


def test_each_split_is_divided_equally():
    made = photos([f"{row // 5}" for row in range(400)], ["train" if row < 300 else "val" for row in range(400)])
    found = ownership(made, ["a", "b"])
    for split in ("train", "val"):
        sizes = [len(found.rows(made.rows(split), worker)) for worker in range(2)]
        assert abs(sizes[0] - sizes[1]) <= 0.1 * sum(sizes)


def test_the_photos_of_a_single_object_and_those_of_none_are_divided():
    for labels in (["one"] * 100, [None] * 100):
        found = ownership(photos(labels), ["a", "b", "c", "d"])
        assert {len(found.rows(np.arange(100), worker)) for worker in range(4)} <= set(range(22, 29))


def test_in_the_next_run_all_own_what_they_owned_in_whatever_order_they_come():
    made = of_objects(objects=60, each=7)
    one, other = ownership(made, ["a", "b", "c"]), ownership(made, ["c", "a", "b"])
    for worker, again in ((0, 1), (1, 2), (2, 0)):
        assert one.rows(np.arange(420), worker).tolist() == other.rows(np.arange(420), again).tolist()


def test_when_a_machine_goes_the_others_keep_most_of_what_they_owned():
    made = of_objects(objects=200, each=5)
    before, after = ownership(made, ["a", "b", "c", "d"]), ownership(made, ["a", "b", "d"])
    stayed = [
        len(np.intersect1d(before.rows(np.arange(1000), worker), after.rows(np.arange(1000), now)))
        for worker, now in ((0, 0), (1, 1), (3, 2))
    ]
    assert sum(stayed) >= 0.9 * sum(len(before.rows(np.arange(1000), worker)) for worker in (0, 1, 3))
