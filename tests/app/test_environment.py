"""A fault in the environment is found before a job begins, and its message names the variable and its value."""

import json
import re

import pytest

from dim.app import environment
from dim.errors import UserError

OWN = ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR", "DIM_SCRATCH", "DIM_LOG", "KERAS_HOME", *environment._TOKENS)
LONG = "a" * 40


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory, in an environment without any variable that is checked, and with a writable HOME."""
    for name in OWN:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / LONG).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


WRONG = [
    ("RAY_TMPDIR", "", "is not an absolute path; set it to another folder"),
    ("RAY_TMPDIR", "file", "is not an absolute path"),
    ("RAY_TMPDIR", "{}/none", "does not exist"),
    ("RAY_TMPDIR", "{}/file", "is not a folder"),
    ("RAY_TMPDIR", "/proc", "is not writable"),
    ("RAY_TMPDIR", f"{{}}/{LONG}", r"has \d+ bytes; Ray's sockets allow at most 2\d"),
    ("RAY_ADDRESS", "", "is not the address of a Ray cluster; set RAY_ADDRESS to the head's HOST:PORT, .* or unset it"),
    ("RAY_ADDRESS", "head", "is not the address of a Ray cluster"),
    ("RAY_ADDRESS", "head:", "is not the address of a Ray cluster"),
    ("RAY_ADDRESS", "ray://head", "is not the address of a Ray cluster"),
    ("RAY_ADDRESS", "10.0.0.1:6379 ", "is not the address of a Ray cluster"),
    ("RAY_ADDRESS", "http://127.0.0.1:8265", "is an address to submit jobs to, .* RAY_API_SERVER_ADDRESS"),
    ("TMPDIR", "{}/none", "does not exist; set it to another folder, or unset it"),
    ("TMPDIR", "{}/file", "is not a folder"),
    ("TMPDIR", "/proc", "is not writable"),
    ("DIM_SCRATCH", "{}/file", "is not a folder"),
    ("DIM_SCRATCH", "/proc", "is not writable"),
    ("DIM_LOG", "jsonl", "is unknown; set it to json, or unset it"),
    ("HOME", "{}/none", "does not exist, and Ray keeps its token there; set HOME"),
    ("HOME", "/dev/null", "is not a folder"),
    ("HOME", "/proc", "is not writable"),
]


@pytest.mark.parametrize(("name", "value", "said"), WRONG, ids=[f"{name}={value}" for name, value, _ in WRONG])
def test_what_is_wrong_is_named(place, monkeypatch, name, value, said):
    value = value.format(place)
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        environment.require_usable()
    shown = re.escape(value[:20])
    assert re.search(f"^{name}='{shown}.*{said}", str(error.value)) and "\n" not in str(error.value), error.value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("RAY_ADDRESS", value) for value in ("10.0.0.1:6379", "[::1]:6379", "head.local:6379", "auto", "local")),
        ("RAY_ADDRESS", "ray://head:10001"),
        ("DIM_LOG", "json"),
        ("DIM_LOG", ""),
        ("DIM_SCRATCH", "{}/made/later"),
        ("DIM_SCRATCH", ""),
        ("TMPDIR", "{}"),
        ("TMPDIR", ""),
        ("RAY_TMPDIR", "/tmp"),
    ],
)
def test_what_is_right_passes(place, monkeypatch, name, value):
    monkeypatch.setenv(name, value.format(place))
    environment.require_usable()


def test_what_a_cluster_does_not_use_is_not_looked_at(place, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "none")
    monkeypatch.setenv("HOME", str(place / "none"))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    environment.require_usable()


def test_a_home_that_cannot_be_written_will_do_where_there_is_a_token(place, monkeypatch):
    monkeypatch.setenv("HOME", str(place / "none"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    environment.require_usable()


def test_a_full_disk_is_named_before_ray_waits_for_it(place, monkeypatch, disk):
    monkeypatch.setattr(environment, "_SOCKET_BYTES", 1000)  # the test's folder has a long name
    monkeypatch.setenv("RAY_TMPDIR", str(disk))
    with pytest.raises(UserError, match=r"^RAY_TMPDIR='.*' has [\d,]+ bytes left, .* make room"):
        environment.require_usable()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], "must hold a JSON object with Keras's settings; correct or delete it"),
        ({"floatx": "bfloat16"}, "has floatx 'bfloat16', which Keras refuses; correct or delete it"),
        ({"epsilon": 1}, "has epsilon 1, which"),
        ({"image_data_format": "NCHW"}, "has image_data_format 'NCHW', which"),
    ],
)
def test_settings_that_keras_refuses_are_named(place, settings, said):
    file = place / "home" / ".keras" / "keras.json"
    file.parent.mkdir()
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=f"^'{file}' {said}"):
        environment.require_usable()


@pytest.mark.parametrize(("users", "used"), [(None, "1"), ("0", "0")])
def test_tensorflow_uses_onednn_unless_the_user_says_no(monkeypatch, users, used):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    if users:
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", users)
    assert environment.tensorflow_variables() == {"KERAS_BACKEND": "tensorflow", "TF_ENABLE_ONEDNN_OPTS": used}
