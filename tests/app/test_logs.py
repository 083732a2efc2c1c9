"""Logs for machines: one JSON object a line, with job, node and shard."""

import io
import json
import logging
import platform
import queue

import pytest

from dim.app import logs


@pytest.fixture
def written(monkeypatch):
    """What a handler set up under these variables writes of a few records."""

    def lines(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        logs.set_up(handler, "extract")
        log = logging.Logger("dim.test")
        log.addHandler(handler)
        log.info("wrote shard %s", "part-1", extra={"shard": "part-1"})
        log.warning("2 photos “größer”", extra={"stage": "extracting", "done": 2, "total": 9, "errors": 0})
        return stream.getvalue().splitlines()

    return lines


def test_a_person_reads_a_line_and_nothing_of_single_shards(written):
    (line,) = written()
    assert line.endswith(" 2 photos “größer”")


def test_a_machine_reads_json_with_job_node_and_shard(written):
    metadata = {"metadata": {"job_submission_id": "raysubmit_1"}}
    shard, progress = map(json.loads, written(DIM_LOG="json", RAY_JOB_CONFIG_JSON_ENV_VAR=json.dumps(metadata)))
    assert shard.pop("time").endswith("+00:00")
    assert shard == {
        "level": "INFO",
        "job": "extract",
        "submission": "raysubmit_1",
        "node": platform.node(),
        "message": "wrote shard part-1",
        "shard": "part-1",
    }
    assert (progress["level"], progress["message"]) == ("WARNING", "2 photos “größer”")
    assert (progress["stage"], progress["done"], progress["total"], progress["errors"]) == ("extracting", 2, 9, 0)


def test_an_exception_is_in_the_same_line(monkeypatch):
    monkeypatch.setenv("DIM_LOG", "json")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logs.set_up(handler, "train")
    log = logging.Logger("dim.test")
    log.addHandler(handler)
    try:
        raise ValueError("torn")
    except ValueError:
        log.exception("a checkpoint is skipped")
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: torn" in json.loads(line)["exception"]
    assert "submission" not in json.loads(line)


def test_what_a_training_worker_says_names_it_and_its_node(monkeypatch):
    from dim.train import failures

    logger = logging.getLogger("dim")
    before = logger.handlers, logger.level, logger.propagate
    records = queue.Queue()
    try:
        failures.log_to(records, logging.INFO, 3)
        logging.getLogger("dim.train.loop").info("an epoch")
    finally:
        logger.handlers, logger.level, logger.propagate = before
    record = records.get_nowait()
    assert (record.getMessage(), record.worker, record.node) == ("an epoch", 3, platform.node())
