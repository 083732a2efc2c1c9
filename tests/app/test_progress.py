"""Progress and steps: their lines on a terminal (a pty) and elsewhere, alone and in a job."""

import json
import logging
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dim.app import log_handler, logs, progress
from dim.app.log_handler import Handler
from dim.app.progress import Progress, duration, step, with_progress

JOBS = Path(__file__).resolve().parents[2] / "jobs"
ERASED = "\r\x1b[K"


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told to."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


@pytest.fixture
def say():
    """Attaches a handler for `stream` to the root logger."""
    logging.getLogger("dim").setLevel(logging.INFO)
    handlers = []

    def to(stream):
        handlers.append(Handler(stream))
        logging.getLogger().addHandler(handlers[0])
        return handlers[0]

    yield to
    logging.getLogger().removeHandler(handlers[0])


@pytest.fixture
def terminal():
    """A pseudo-terminal: the stream to write to, and what was written, all of it or up to a word."""
    ours, theirs = pty.openpty()

    def screen(word=None):
        shown = b""
        while word.encode() not in shown if word else select.select([ours], [], [], 0.2)[0]:
            shown += os.read(ours, 1000)
        return shown.decode().replace("\r\n", "\n")

    with open(theirs, "w", encoding="utf-8") as stream:
        yield stream, screen
    os.close(ours)


def test_what_a_line_says(clock, caplog):
    caplog.set_level(logging.INFO, "dim")
    stage = Progress("extracting", 1000, errors=True)
    clock(30)  # the network is loaded
    stage.add(32)
    clock(2)
    stage.add(64, errors=1)
    clock(0.1)
    stage.add(1)  # too soon to say
    clock(29.9)
    stage.add(903, errors=2)
    assert caplog.messages == [
        "extracting: 0 of 1,000 images, 0 errors",  # it may be long before the first photos are done
        "extracting: 32 of 1,000 images, 0 errors",  # a rate would be that of the start-up
        "extracting: 96 of 1,000 images, 1 error, 32.0 images/s, 28 s left",
        "extracting: 1,000 of 1,000 images, 3 errors, 16.1 images/s, 1 min 2 s",
    ]
    assert stage.seconds == 62


def test_an_epoch_is_named_beside_its_stage(caplog):
    caplog.set_level(logging.INFO, "dim")
    Progress("fitting", 40, "triplets", epoch=3).add(8)
    _, record = caplog.records
    assert record.getMessage() == "fitting epoch 3: 8 of 40 triplets"
    assert (record.stage, record.epoch) == ("fitting", 3)


def test_parts_are_counted_once_they_have_been_used(clock, caplog):
    caplog.set_level(logging.INFO, "dim")
    for _ in with_progress([[1, 2], [3]], len, "indexing", 3, "rows"):
        clock(1)
    assert caplog.messages[1:] == ["indexing: 2 of 3 rows", "indexing: 3 of 3 rows, 1.5 rows/s, 2 s"]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_lines_come_every_few_seconds_where_there_is_no_terminal(tmp_path, clock, say):
    with open(tmp_path / "log", "w", encoding="utf-8") as stream:
        say(stream)
        logging.getLogger("dim.job").info("100 photos")
        stage = Progress("embedding", 100)
        for _ in range(100):
            clock(0.5)
            stage.add()
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "100 photos"
    assert lines[1] == "embedding: 10 of 100 images, 2.0 images/s, 45 s left"
    assert lines[-1] == "embedding: 100 of 100 images, 2.0 images/s, 50 s"
    assert len(lines) == 11


def test_one_line_is_written_over_on_a_terminal(terminal, clock, say):
    stream, screen = terminal
    handler = say(stream)
    stage = Progress("embedding", 3)
    stage.add()
    logging.getLogger("dim.job").warning("a photo is broken")
    clock(1)
    stage.add()
    clock(1)
    stage.add()
    logging.getLogger("dim.job").info("done")
    assert screen().split(ERASED) == [
        "",
        "embedding: 0 of 3 images",
        "embedding: 1 of 3 images",
        "a photo is broken\nembedding: 1 of 3 images",
        "embedding: 2 of 3 images, 1.0 images/s, 1 s left",
        "embedding: 3 of 3 images, 1.5 images/s, 2 s\n",
        "done\n",
    ]
    Progress("embedding", 3).add()
    handler.close()
    assert screen().endswith(f"{ERASED}embedding: 1 of 3 images\n")  # what comes next has a line of its own


def test_a_long_line_is_cut_to_the_terminal(terminal, say):
    stream, screen = terminal
    say(stream)
    Progress("x" * 500, 3)
    assert len(screen()) == len(ERASED) + 79  # a terminal that doesn't know its width


def test_what_was_logged_last_is_repeated_with_its_age(tmp_path, clock, say):
    with open(tmp_path / "log", "w", encoding="utf-8") as stream:
        handler = say(stream)
        log = logging.getLogger("dim.job")
        assert handler.repeat_if_due() == log_handler.SECONDS  # nothing to repeat yet
        log.info("starting 1 network actor")
        clock(4)
        assert handler.repeat_if_due() == 1
        clock(1)
        assert handler.repeat_if_due() == log_handler.SECONDS
        clock(10)
        handler.repeat_if_due()
        stage = Progress("extracting", 30)  # too soon to be written, but it is what is repeated
        clock(5)
        handler.repeat_if_due()
        log.warning("a photo is broken")
        clock(5)
        handler.repeat_if_due()
        clock(1)
        stage.add(10)
        clock(4.5)
        stage.add(20)
    assert (tmp_path / "log").read_text().splitlines() == [
        "starting 1 network actor",
        "starting 1 network actor … 5 s",
        "starting 1 network actor … 15 s",
        "extracting: 0 of 30 images; unchanged for 5 s",
        "a photo is broken",
        "extracting: 0 of 30 images; unchanged for 10 s",
        "extracting: 30 of 30 images, 1.9 images/s, 16 s",
    ]


def test_withheld_progress_is_written_when_it_is_due(tmp_path, clock, say):
    with open(tmp_path / "log", "w", encoding="utf-8") as stream:
        handler = say(stream)
        stage = Progress("extracting", 30)
        clock(4.7)
        stage.add(10)
        clock(0.3)
        handler.repeat_if_due()
    assert (tmp_path / "log").read_text() == "extracting: 10 of 30 images\n"


def test_a_step_is_shown_only_if_it_takes_long(tmp_path, clock, say, terminal):
    def steps(handler):
        for seconds in (4, 12):
            with step("reading 'a.csv'"):
                for _ in range(seconds):
                    clock(1)
                    handler.repeat_if_due()

    with open(tmp_path / "log", "w", encoding="utf-8") as stream:
        handler = say(stream)
        steps(handler)
        logging.getLogger().removeHandler(handler)
    assert (tmp_path / "log").read_text().splitlines() == [
        "reading 'a.csv' … 1 s",
        "reading 'a.csv' … 6 s",
        "reading 'a.csv' … 11 s",
        "reading 'a.csv': 12 s",
    ]
    stream, screen = terminal
    handler = Handler(stream)
    logging.getLogger().addHandler(handler)
    steps(handler)
    logging.getLogger().removeHandler(handler)
    assert screen().split(ERASED) == [
        "",
        "reading 'a.csv'",
        "",  # done: the line is cleared
        "reading 'a.csv'",
        "reading 'a.csv' … 5 s",
        "reading 'a.csv' … 10 s",
        "reading 'a.csv': 12 s\n",
    ]


def test_what_came_before_a_short_step_is_repeated_after_it(tmp_path, clock, say):
    with open(tmp_path / "log", "w", encoding="utf-8") as stream:
        handler = say(stream)
        logging.getLogger("dim.job").info("2 photos")
        clock(1)
        with step("reading 'a.csv'"), step("reading 'b.csv'"):
            clock(1)
        clock(3)
        handler.repeat_if_due()
        stage = Progress("embedding", 9)
        with step("computing mAP"):
            clock(4)
        clock(1)
        handler.repeat_if_due()
        stage.add(9)
    assert (tmp_path / "log").read_text().splitlines() == [
        "2 photos",
        "2 photos … 5 s",
        "embedding: 0 of 9 images; unchanged for 5 s",
        "embedding: 9 of 9 images, 1.8 images/s, 5 s",
    ]


def test_a_repeated_line_on_a_terminal_gives_way_to_the_next(terminal, clock, say):
    stream, screen = terminal
    handler = say(stream)
    log = logging.getLogger("dim.job")
    for line in ("starting Ray", f"photos left out: {'x' * 90}"):
        log.info(line)
        clock(5)
        handler.repeat_if_due()
    assert screen().split(ERASED) == [
        "",
        "starting Ray\n",
        "starting Ray … 5 s",
        f"photos left out: {'x' * 90}\n",
        f"photos left out: {'x' * 23}… … 5 s",
    ]


def test_a_thread_repeats_and_json_keeps_the_stage(tmp_path, monkeypatch, say):
    monkeypatch.setattr(log_handler, "SECONDS", 0.01)
    monkeypatch.setenv("DIM_LOG", "json")
    repeated = threading.Event()
    monkeypatch.setattr(log_handler, "duration", lambda seconds: repeated.set() or f"{seconds:.0f} s")
    with open(tmp_path / "log", "w", encoding="utf-8") as stream:
        handler = say(stream)
        logs.set_up(handler, "extract")
        monkeypatch.setattr(log_handler, "SHOWN_AGE", 0.0)
        with handler.repeating(), step("starting Ray"):
            assert repeated.wait(60)
    first = json.loads((tmp_path / "log").read_text().splitlines()[0])
    assert (first["stage"], first["job"]) == ("starting Ray", "extract")
    assert not any(thread.name == "log" for thread in threading.enumerate())


def test_a_job_on_a_terminal(terminal, demo, tmp_path):
    stream, screen = terminal
    command = [sys.executable, JOBS / "split.py", demo, "--out", tmp_path / "manifest.csv"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stream, text=True, check=True)
    shown = screen()
    assert re.match(r"\r\x1b\[K\d\d:\d\d:\d\d Split labelled photos into train, val and test.*: /", shown)
    assert re.search(r"checking: 310 of 310 images, 0 errors, [\d,.]+ images/s, \d+ s\n", shown)
    assert json.loads(done.stdout.splitlines()[-1])["images"] == 310


@pytest.fixture
def split_of_many(demo, tmp_path):
    """The command of a split that checks photos for many seconds."""
    for copy in range(20):
        for photo in demo.glob("*/*.jpg"):
            (folder := tmp_path / "photos" / f"{photo.parent.name}-{copy}").mkdir(parents=True, exist_ok=True)
            (folder / photo.name).symlink_to(photo)
    return [sys.executable, JOBS / "split.py", tmp_path / "photos", "--out", tmp_path / "manifest.csv"]


def test_ctrl_c_says_how_to_resume(terminal, split_of_many, tmp_path):
    stream, screen = terminal
    job = subprocess.Popen(split_of_many, stdout=subprocess.PIPE, stderr=stream, text=True)
    screen("Split")
    job.send_signal(signal.SIGINT)
    out, _ = job.communicate(timeout=60)
    assert (job.returncode, out) == (130, "")
    assert screen().endswith("interrupted; run the same command again to resume\n")
    assert not (tmp_path / "manifest.csv").exists()


@pytest.mark.slow
def test_a_machine_reads_json_on_a_terminal_and_after_ctrl_c(terminal, split_of_many):
    stream, screen = terminal
    environment = os.environ | {"DIM_LOG": "json"}
    job = subprocess.Popen(split_of_many, stdout=subprocess.PIPE, stderr=stream, text=True, env=environment)
    said = screen("Split")
    job.send_signal(signal.SIGINT)
    job.communicate(timeout=60)
    lines = (said + screen()).splitlines()
    assert json.loads(lines[-1])["message"] == "interrupted; run the same command again to resume"
    assert all(json.loads(line)["job"] == "split" for line in lines)
