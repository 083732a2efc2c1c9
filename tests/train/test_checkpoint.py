"""A checkpoint is read as it was written, or, where a death or a disk damaged it, not at all."""

import hashlib
import io
import json

import keras
import numpy as np
import pytest

from dim.train import checkpoint
from dim.train.checkpoint import State


def trained(epoch):
    """Variables and an optimizer after `epoch` steps, and the state of then."""
    keras.utils.set_random_seed(3)
    variables = [keras.Variable(np.ones(shape, np.float32)) for shape in ((3, 2), (2,))]
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(variables)
    for step in range(epoch):
        optimizer.apply([np.full(variable.shape, step + 1.0, np.float32) for variable in variables], variables)
    history = [{"epoch": number, "val_map": {1: 0.4, 2: 0.6}.get(number, 0.5)} for number in range(1, epoch + 1)]
    triplets = np.array([["é", "b/2", "c"], ["b/2", "é", str(epoch)]], dtype=object)
    groups = np.array([["é", "é"], ["c", "é"], ["of no triplet", "of no triplet"]])
    aps = {"ap_before": np.array([0.25, np.nan]), "ap": np.array([0.5, epoch / 4])}
    state = State(epoch=epoch, map_before=0.25, history=history, triplets=triplets, groups=groups, **aps)
    return variables, optimizer, state


@pytest.fixture
def folder(tmp_path):
    """The checkpoints of three epochs."""
    for epoch in (1, 2, 3):
        variables, optimizer, state = trained(epoch)
        checkpoint.write(str(tmp_path / "checkpoints"), state, variables, optimizer)
    return tmp_path / "checkpoints"


def values(variables):
    return [variable.numpy() for variable in variables]


def test_what_is_read_is_what_was_written(folder):
    variables, optimizer, expected = trained(2)
    found, other, _ = trained(0)
    state = checkpoint.read(str(folder), 2, found, other)
    for name in ("triplets", "groups", "ap_before", "ap"):
        np.testing.assert_array_equal(getattr(state, name), getattr(expected, name))
    assert state.val_before == 0.25
    assert state.as_json() == expected.as_json()
    for one, two in ((variables, found), (optimizer.variables, other.variables)):
        assert all(map(np.array_equal, values(one), values(two)))


DAMAGE = {
    "cut": ("npz", lambda content: content[:-7]),
    "empty": ("npz", lambda _: b""),
    "a bit flipped": ("npz", lambda content: content[:300] + bytes([content[300] ^ 1]) + content[301:]),
    "arrays gone": ("npz", None),
    "state cut": ("json", lambda content: content[:40]),
    "no state": ("json", lambda _: b"[]"),
    "not even text": ("json", lambda _: b"\xff\0"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(folder, name):
    ending, change = DAMAGE[name]
    epochs = checkpoint.newest_first(str(folder))
    assert epochs == [3, 2, 1]
    for epoch, left in ((3, 2), (2, 1), (1, None)):
        assert checkpoint.whole(str(folder), epochs) == epoch
        path = folder / f"epoch-000{epoch}.{ending}"
        path.write_bytes(change(path.read_bytes())) if change else path.unlink()
        assert checkpoint.whole(str(folder), epochs) == left


def packed(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("state", "content"),
    [
        (None, packed(triplets=np.zeros((0, 3), np.int64))),
        ({"unknown": 1}, None),
        ([1], None),
        ({}, None),
        ({"epoch": 2}, None),
        ({"history": [{"epoch": 1}]}, None),
        ({"history": [{"epoch": 1, "val_map": "high"}]}, None),
        ({"history": None}, None),
        ({}, b"PK"),
        ({"epoch": 1, "history": [{"epoch": 1, "val_map": None}]}, b"garbage"),
        ({"epoch": 1, "history": [{"epoch": 1, "val_map": None}]}, packed(other=np.zeros(3))),
        ({"epoch": 1, "history": [{"epoch": 1, "val_map": None}]}, packed(triplets=np.array([{}], object))),
    ],
)
def test_a_checkpoint_of_another_kind_with_the_right_sum_is_not_whole(folder, state, content):
    whole = json.loads((folder / "epoch-0001.json").read_text())["state"]
    if content is None:
        content = (folder / "epoch-0001.npz").read_bytes()
        state = whole | state if state and isinstance(state, dict) else state
    (folder / "epoch-0001.npz").write_bytes(content)
    document = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "epoch-0001.json").write_text(json.dumps(document | ({} if state is None else {"state": state})))
    assert checkpoint.whole(str(folder), [1]) is None


def test_other_names_are_no_checkpoints(folder):
    for name in ("epoch-abc.json", "epoch-.json", "epoch-1.json"):
        (folder / name).write_text("{}")
    assert checkpoint.newest_first(str(folder)) == [3, 2, 1]


def test_a_death_before_the_state_leaves_no_checkpoint(folder):
    (folder / "epoch-0003.json").unlink()
    assert checkpoint.newest_first(str(folder)) == [2, 1]
    assert checkpoint.newest_first(str(folder / "none")) == []


def test_the_last_two_and_the_best_are_kept(folder):
    (folder / "epoch-0003.npz.77.tmp").write_bytes(b"half")
    (folder / "epoch-0004.npz").write_bytes(b"its state never came")
    checkpoint.keep(str(folder), {2, 3})
    assert sorted(path.name for path in folder.iterdir()) == [
        f"epoch-000{epoch}.{ending}" for epoch in (2, 3) for ending in ("json", "npz")
    ]


def test_the_best_epoch_is_that_of_the_highest_map_and_without_one_the_last():
    assert trained(3)[2].best_first() == [2, 3, 1, 0]
    rows = [{"epoch": epoch, "val_map": None} for epoch in (1, 2, 3)]
    assert State(history=rows).best_first() == [3, 2, 1, 0]


def test_the_fitted_network_is_the_best_where_no_epoch_reaches_its_map():
    rows = [{"epoch": epoch, "val_map": value} for epoch, value in ((1, 0.4), (2, 0.3))]
    assert State(history=rows, val_fitted=0.5).best_first() == [0, 1, 2]
    assert State(history=rows, val_fitted=0.4).best_first() == [1, 0, 2]


@pytest.mark.parametrize(
    ("fitted", "maps", "expected"),
    [(0.5, [0.6, 0.7], 0), (0.5, [0.6, 0.6], 1), (0.5, [0.4, 0.5], 2), (0.5, [], 0), (None, [None, None], 0)],
)
def test_the_epochs_without_gain_are_those_since_the_first_of_the_highest_map(fitted, maps, expected):
    rows = [{"epoch": epoch, "val_map": value} for epoch, value in enumerate(maps, start=1)]
    assert State(epoch=len(rows), history=rows, val_fitted=fitted).epochs_without_gain() == expected


def test_the_fitted_network_is_kept_but_nothing_is_resumed_from_it(folder):
    variables, optimizer, state = trained(0)
    checkpoint.write(str(folder), state, variables, optimizer)
    checkpoint.keep(str(folder), {3})
    assert checkpoint.newest_first(str(folder)) == [3]
    assert checkpoint.whole(str(folder), [0]) == 0
    found, other, _ = trained(2)
    checkpoint.read(str(folder), 0, found, other)
    assert all(map(np.array_equal, values(found), values(variables)))
