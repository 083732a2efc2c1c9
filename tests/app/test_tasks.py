"""Units of work spread over Ray tasks and over threads: each once, few at a time, errors as they are."""

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dim.app import tasks
from dim.app.worker_placement import Node
from dim.errors import UserError


def total(unit, values):
    return unit, float(values[unit].sum())


def fails(unit):
    if unit == 3:
        raise UserError("unit 3 is wrong")
    return unit


def dies_once(unit, folder):
    if unit == 1 and not (mark := Path(folder) / "died").exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return unit


@pytest.fixture(params=["threads", "tasks"])
def backend(request):
    if request.param == "tasks":
        request.getfixturevalue("ray_session")
    else:
        request.getfixturevalue("monkeypatch").setattr(tasks.ray, "is_initialized", lambda: False)


@pytest.mark.parametrize("workers", [None, 1, 3])
def test_each_unit_is_worked_on_once(backend, workers):
    values = np.arange(35.0).reshape(7, 5)
    found = dict(tasks.spread(total, range(7), [values], workers=workers, stage="summing"))
    assert found == {row: (row, values[row].sum()) for row in range(7)}
    assert list(tasks.spread(total, [], [values])) == []


def test_an_error_reaches_the_caller(backend):
    with pytest.raises(UserError, match="unit 3 is wrong"):
        list(tasks.spread(fails, range(5), workers=2))


def test_units_of_a_dead_worker_are_repeated(ray_session, tmp_path):
    assert sorted(tasks.spread(dies_once, range(3), [str(tmp_path)])) == [(0, 0), (1, 1), (2, 2)]


def test_no_more_threads_than_workers(monkeypatch):
    monkeypatch.setattr(tasks.ray, "is_initialized", lambda: False)
    running, most, lock = 0, 0, threading.Lock()

    def work(unit):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    assert len(list(tasks.spread(work, range(20), workers=3))) == 20
    assert most == 3


def test_a_caller_that_stops_early_starts_no_more(monkeypatch):
    monkeypatch.setattr(tasks.ray, "is_initialized", lambda: False)
    started = []
    found = tasks.spread(started.append, range(100), workers=2)
    next(found)
    found.close()
    assert len(started) <= 4


def test_threads_have_no_gpus(monkeypatch):
    monkeypatch.setattr(tasks.ray, "is_initialized", lambda: False)
    assert tasks.gpus_of_a_call() == tasks.gpus_of_a_call(1.0) == 0
    monkeypatch.setattr(tasks.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(tasks.worker_placement, "known_nodes", lambda: Counter([Node(8, 2), Node(8, 0)]))
    assert [tasks.gpus_of_a_call(wanted) for wanted in (None, 0.0, 0.5)] == [1, 0, 0.5]


def test_a_single_light_unit_is_done_here(ray_session):
    assert list(tasks.spread(lambda _: os.getpid(), [0], light=True)) == [(0, os.getpid())]
    assert os.getpid() not in dict(tasks.spread(lambda _: os.getpid(), [0, 1], light=True)).values()


def test_results_come_in_the_order_of_the_units():
    given = [(2, "c"), (0, "a"), (3, "d"), (1, "b")]
    assert list(tasks.in_order(given)) == ["a", "b", "c", "d"]
    early = tasks.in_order(iter(given[:2]))
    assert next(early) == "a"
