"""Checks the environment before a job begins: with wrong settings, Ray and Keras would fail late and obscurely.

`require_ray` finds a Python that has Ray. `require_usable` checks folders and variables. The functions at the end are
about jobs that were submitted to a cluster (`ray job submit`).
"""

import dataclasses
import importlib.util
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TypeVar

from dim.errors import UserError, quoted
from dim.io import scratch

C = TypeVar("C")

log = logging.getLogger(__name__)

_SOCKET = "dim-job-12345678/session_2026-01-31_12-00-00_123456_1234567/sockets/plasma_store"  # below RAY_TMPDIR
_SOCKET_BYTES = 107  # the longest path that a socket can have
_RAY_BYTES = 2**24  # room for Ray's first logs; with less, Ray reports a timeout after half a minute
_ADDRESS = re.compile(r"auto|local|(ray://)?(\[[0-9A-Fa-f:.]+\]|[^\s:/]+):[0-9]{1,5}")
_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")

_AS_A_FILE = "job"  # the -X option in the first line of jobs/*.py
_WORKERS = "--python_worker_command="  # argument of Ray's process on a node (the raylet) that says how to start workers


def require_ray() -> None:
    """Restarts the job under the cluster's Python if the job was submitted as a file and this Python has no Ray.

    A job submitted as a file (`ray job submit --working-dir . -- jobs/train.py`) runs under the first `python3` on the
    cluster's PATH. Another Python of the cluster may have Ray. Raises UserError if this Python has no Ray and the job
    was not submitted as a file, or if no Python with Ray is known.
    """
    if importlib.util.find_spec("ray") is not None:
        return
    if _AS_A_FILE in sys._xoptions and (python := _of_the_cluster()) is not None:
        os.execv(python, [python, *sys.argv])
    raise UserError(
        f"{sys.executable} has no Ray; run the job with the Python of the environment that dim is installed in "
        "(a job that is submitted as jobs/NAME.py, without python, finds it by itself)"
    )


def _of_the_cluster() -> str | None:
    """The Python of Ray's workers, from the raylet that started this process. None if no raylet started it."""
    process = os.getpid()
    while process > 1:
        try:
            arguments = Path(f"/proc/{process}/cmdline").read_text(errors="replace").split("\0")
            # The program's name is in parentheses, and may itself contain spaces and parentheses.
            process = int(Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            return None
        for argument in arguments:
            if argument.startswith(_WORKERS):
                return argument.removeprefix(_WORKERS).split()[0]
    return None


def require_usable() -> None:
    """Raises UserError, naming the variable and its value, if something in the environment can't be used."""
    _require_temporary_folder()
    _require_scratch()
    _require_log_format()
    _require_keras_settings()
    if "RAY_ADDRESS" in os.environ:
        _require_address(os.environ["RAY_ADDRESS"])
    else:
        _require_ray_folder()
        _require_token()


def tensorflow_variables() -> dict[str, str]:
    """The environment variables of all processes that compute; TensorFlow and Keras read them when they are imported.

    Keras uses TensorFlow, whatever the user's settings of Keras say. TensorFlow uses oneDNN's kernels, unless the user
    has set TF_ENABLE_ONEDNN_OPTS. TensorFlow's own default uses them only on a CPU with AVX512_VNNI, although they are
    faster on any CPU with AVX2.
    """
    return {"KERAS_BACKEND": "tensorflow", "TF_ENABLE_ONEDNN_OPTS": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1")}


def _require_temporary_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UserError("the working directory was deleted; change to another") from error
    if (wanted := os.environ.get("TMPDIR")) and (fault := _fault(wanted)):
        raise UserError(f"TMPDIR={quoted(wanted)} {fault}; set it to another folder, or unset it")
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(f"no temporary folder is writable ({error.strerror}); set TMPDIR to one that is") from error


def _require_scratch() -> None:
    wanted = os.environ.get("DIM_SCRATCH")
    if wanted and os.path.lexists(wanted) and (fault := _fault(wanted)):
        raise UserError(f"DIM_SCRATCH={quoted(wanted)} {fault}; set it to another folder, or unset it")
    scratch.require_own()


def _require_log_format() -> None:
    if os.environ.get("DIM_LOG", "") not in ("", "json"):
        raise UserError(f"DIM_LOG={quoted(os.environ['DIM_LOG'])} is unknown; set it to json, or unset it")


def _require_keras_settings() -> None:
    # Keras ignores a file that is not JSON, and fails at import on a value that it does not know.
    path = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "keras.json"
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return
    if not isinstance(known, dict):
        raise UserError(f"{str(path)!r} must hold a JSON object with Keras's settings; correct or delete it")
    allowed = {
        "floatx": ("float16", "float32", "float64"),
        "image_data_format": ("channels_last", "channels_first"),
    }
    wrong = {name for name, values in allowed.items() if known.get(name, values[0]) not in values}
    if not isinstance(known.get("epsilon", 0.0), float):
        wrong.add("epsilon")
    if wrong:
        name = min(wrong)
        raise UserError(f"{str(path)!r} has {name} {quoted(known[name])}, which Keras refuses; correct or delete it")


def _require_address(address: str) -> None:
    if _ADDRESS.fullmatch(address):
        return
    wanted = "set RAY_ADDRESS to the head's HOST:PORT, such as 10.0.0.1:6379, or unset it"
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS={quoted(address)} is an address to submit jobs to, which belongs in "
            f"RAY_API_SERVER_ADDRESS; {wanted}"
        )
    raise UserError(f"RAY_ADDRESS={quoted(address)} is not the address of a Ray cluster; {wanted}")


def _require_ray_folder() -> None:
    wanted = os.environ.get("RAY_TMPDIR", "/tmp")
    remedy = "set it to another folder"
    fault = _fault(wanted) if Path(wanted).is_absolute() else "is not an absolute path"
    room = _SOCKET_BYTES - len(_SOCKET) - 1
    if fault is None and (length := len(os.fsencode(wanted))) > room:
        fault = f"has {length} bytes; Ray's sockets allow at most {room}"
    if fault is None and (free := shutil.disk_usage(wanted).free) < _RAY_BYTES:
        fault = f"has {free:,} bytes left, but Ray needs {_RAY_BYTES:,} to start"
        remedy = f"make room there, or {remedy}"
    if fault:
        raise UserError(f"RAY_TMPDIR={quoted(wanted)} {fault}; {remedy}")


def _require_token() -> None:
    # If there is no token, Ray writes one below the home folder.
    home = Path(os.path.expanduser("~"))
    if any(name in os.environ for name in _TOKENS) or (home / ".ray" / "auth_token").exists():
        return
    for folder in (home, home / ".ray"):
        if (folder == home or os.path.lexists(folder)) and (fault := _fault(str(folder))):
            raise UserError(
                f"HOME={quoted(str(home))}: {str(folder)!r} {fault}, and Ray keeps its token there; "
                "set HOME to a folder that is writable"
            )


def _fault(folder: str) -> str | None:
    """Why `folder` can't be written, as words to follow its name: "is not a folder". None if it can be written."""
    try:
        if not Path(folder).is_dir():
            return "is not a folder" if os.path.lexists(folder) else "does not exist"
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"is not writable ({error.strerror})"


_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for a submitted job


def submission_id() -> str | None:
    """Ray's id of the submitted job; None if the job was not submitted."""
    try:
        known = json.loads(os.environ.get(_JOB_CONFIG, "{}"))
    except ValueError:
        return None
    metadata = known.get("metadata") if isinstance(known, dict) else None
    found = metadata.get("job_submission_id") if isinstance(metadata, dict) else None
    return None if found is None else str(found)


def with_lasting_output(config: C) -> C:
    """Returns `config`. If the output would not outlive the job, changes `out` or raises UserError.

    Ray deletes the working directory of a submitted job after a while, so a relative `out` raises UserError. The demo
    (a job without `manifest` and `out`) is an exception: it writes to `dim-runs` in the home folder instead. Other
    nodes don't have that folder, so the demo then starts its own Ray on this machine instead of using the cluster.
    """
    out = getattr(config, "out", None)
    if out is None or submission_id() is None or "://" in out or out.startswith(("/", "~")):
        return config
    defaults = {field.name: field.default for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    if getattr(config, "manifest", None) is None and out == defaults["out"]:
        kept = str(Path.home() / "dim-runs" / Path(out).name)
        log.info("running the demo on this machine alone, with its output in %s, as no --out is given", kept)
        for name in (_JOB_CONFIG, "RAY_ADDRESS"):
            os.environ.pop(name, None)
        return dataclasses.replace(config, out=kept)  # type: ignore[type-var]
    raise UserError(
        f"--out {out!r} is relative, and would be lost with this submitted job's copy of the working directory; write "
        "s3://…, gs://…, or an absolute path"
    )
