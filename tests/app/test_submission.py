"""What a submitted job knows of itself, and where it may write."""

import json
import logging
import os
from pathlib import Path

import pytest

from dim.app import environment
from dim.errors import UserError
from dim.extract.config import ExtractConfig
from dim.train.config import TrainConfig


@pytest.fixture
def submitted(monkeypatch):
    known = {"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}, "metadata": {"job_submission_id": "raysubmit_1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(known))


@pytest.mark.parametrize("said", [None, "", "no JSON", "[]", '{"metadata": 1}', '{"metadata": {}}'])
def test_a_job_that_was_not_submitted_has_no_id(monkeypatch, said):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    if said is not None:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", said)
    assert environment.submission_id() is None
    config = TrainConfig()
    assert environment.with_lasting_output(config) is config


@pytest.mark.parametrize("out", ["runs/x", "x", "./x", "../x"])
def test_a_relative_output_of_a_submitted_job_is_refused(submitted, out):
    with pytest.raises(UserError, match=f"--out '{out}' is relative"):
        environment.with_lasting_output(ExtractConfig(manifest="photos.csv", model="vgg16-gem", out=out))
    with pytest.raises(UserError, match="is relative"):
        environment.with_lasting_output(TrainConfig(out=out))
    with pytest.raises(UserError, match="is relative"):
        environment.with_lasting_output(TrainConfig(manifest="/mnt/photos.csv"))  # its default is as relative


@pytest.mark.parametrize("out", ["/mnt/x", "~/x", "s3://bucket/x", "file:///mnt/x"])
def test_an_output_that_lasts_is_taken_as_it_is(submitted, monkeypatch, out):
    config = ExtractConfig(manifest="photos.csv", model="vgg16-gem", out=out)
    monkeypatch.setenv("RAY_ADDRESS", "10.77.0.2:6379")
    assert environment.with_lasting_output(config) is config
    assert os.environ["RAY_ADDRESS"] == "10.77.0.2:6379"


@pytest.mark.parametrize("flags", [{}, {"epochs": 5}, {"model": "vgg16-mac", "seed": 1}])
def test_the_demo_stays_on_this_machine_in_the_home_folder_and_says_so(submitted, monkeypatch, tmp_path, caplog, flags):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "10.77.0.2:6379")
    with caplog.at_level(logging.INFO, "dim"):
        config = environment.with_lasting_output(TrainConfig(**flags))
    assert Path(config.out) == tmp_path / "dim-runs" / "demo"
    assert config.out in caplog.text
    assert config == TrainConfig(out=config.out, **flags)
    assert not {"RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"} & os.environ.keys()
