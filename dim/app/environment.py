"""The environment of a job, checked before it begins: what is wrong would else end it later, deep in Ray or Keras.

Which Python runs a job: one that has Ray.

A job may be submitted as a file, `ray job submit --working-dir . -- jobs/train.py`. Its first line then takes the first
`python3` on the cluster's PATH, which need not be the one that Ray was installed for.

What Ray tells a job that was submitted to a cluster (`ray job submit`) of itself, in the environment.
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
from typing import Any, TypeVar

from dim.errors import UserError, quoted
from dim.io import scratch

# What Ray puts into RAY_TMPDIR with the longest name, and how long the name of a socket may be.
_SOCKET = "dim-job-12345678/session_2026-01-31_12-00-00_123456_1234567/sockets/plasma_store"
_SOCKET_BYTES = 107
_RAY_BYTES = 2**24  # of its logs, for a start: where they don't fit, Ray says after half a minute that it timed out
_ADDRESS = re.compile(r"auto|local|(ray://)?(\[[0-9A-Fa-f:.]+\]|[^\s:/]+):[0-9]{1,5}")
_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")


def require_usable() -> None:
    """Raises UserError, which names the variable and its value, where something in the environment can't be used."""
    _require_temporary_folder()
    _require_scratch()
    _require_log_format()
    _require_keras_settings()
    if "RAY_ADDRESS" in os.environ:
        _require_address(os.environ["RAY_ADDRESS"])
    else:
        _require_ray_folder()
        _require_token()


def set_own() -> None:
    """Sets, for this process and all that it starts, what other projects may have set differently."""
    os.environ["KERAS_BACKEND"] = "tensorflow"


def _require_temporary_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UserError("the working directory was deleted; change to another") from error
    if (wanted := os.environ.get("TMPDIR")) and (fault := _fault(wanted)):
        raise UserError(f"TMPDIR={quoted(wanted)} {fault}; name another, or unset it")
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(f"no temporary folder can be written ({error.strerror}); name one by TMPDIR") from error


def _require_scratch() -> None:
    wanted = os.environ.get("DIM_SCRATCH")
    if wanted and os.path.lexists(wanted) and (fault := _fault(wanted)):
        raise UserError(f"DIM_SCRATCH={quoted(wanted)} {fault}; name another, or unset it")
    scratch.require_own()


def _require_log_format() -> None:
    if os.environ.get("DIM_LOG", "") not in ("", "json"):
        raise UserError(f"DIM_LOG={quoted(os.environ['DIM_LOG'])} is unknown; set it to json, or unset it")


def _require_keras_settings() -> None:
    # Keras takes a file that is no JSON for none. What else it refuses, it refuses while it is imported.
    path = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "keras.json"
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return
    if not isinstance(known, dict):
        raise UserError(f"{str(path)!r} is not a file of Keras's settings; mend or delete it")
    allowed = {
        "floatx": ("float16", "float32", "float64"),
        "image_data_format": ("channels_last", "channels_first"),
    }
    wrong = {name for name, values in allowed.items() if known.get(name, values[0]) not in values}
    if not isinstance(known.get("epsilon", 0.0), float):
        wrong.add("epsilon")
    if wrong:
        name = min(wrong)
        raise UserError(f"{str(path)!r} has {name} {quoted(known[name])}, which Keras refuses; mend or delete it")


def _require_address(address: str) -> None:
    if _ADDRESS.fullmatch(address):
        return
    known = "the head's HOST:PORT, such as 10.0.0.1:6379"
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS={quoted(address)} is where jobs are submitted, for which there is RAY_API_SERVER_ADDRESS; "
            f"set it to {known}, or unset it"
        )
    raise UserError(f"RAY_ADDRESS={quoted(address)} is not the address of a Ray; set it to {known}, or unset it")


def _require_ray_folder() -> None:
    wanted = os.environ.get("RAY_TMPDIR", "/tmp")
    fault = _fault(wanted) if Path(wanted).is_absolute() else "is not absolute"
    room = _SOCKET_BYTES - len(_SOCKET) - 1
    if fault is None and (length := len(os.fsencode(wanted))) > room:
        fault = f"has {length} bytes, and for the names of sockets to fit it may have {room}"
    if fault is None and (free := shutil.disk_usage(wanted).free) < _RAY_BYTES:
        fault = f"has {free:,} bytes left, and Ray needs {_RAY_BYTES:,} to start; make room there"
    if fault:
        raise UserError(f"RAY_TMPDIR={quoted(wanted)} {fault}; name another folder by it")


def _require_token() -> None:
    # Ray makes one where there is none.
    home = Path(os.path.expanduser("~"))
    if any(name in os.environ for name in _TOKENS) or (home / ".ray" / "auth_token").exists():
        return
    for folder in (home, home / ".ray"):
        if (folder == home or os.path.lexists(folder)) and (fault := _fault(str(folder))):
            raise UserError(
                f"HOME={quoted(str(home))}: {str(folder)!r} {fault}, and Ray keeps its token there; "
                "set HOME to a folder that can be written"
            )


def _fault(folder: str) -> str | None:
    """What is wrong with `folder` as a place to write."""
    try:
        if not Path(folder).is_dir():
            return "is no folder" if os.path.lexists(folder) else "does not exist"
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"cannot be written ({error.strerror})"


_AS_A_FILE = "job"  # the option -X of the jobs' first line
_WORKERS = "--python_worker_command="  # of Ray's raylet: how it starts its own workers


def require_ray() -> None:
    """Starts the job again under the cluster's Python where it runs as a file and this Python has no Ray.

    Raises UserError, naming this Python, where there is no other to take, or where the user named this one.
    """
    if importlib.util.find_spec("ray") is not None:
        return
    if _AS_A_FILE in sys._xoptions and (python := _of_the_cluster()) is not None:
        os.execv(python, [python, *sys.argv])
    raise UserError(
        f"{sys.executable} has no Ray; run the job with the Python of the environment that dim is installed in "
        "(submitted as jobs/NAME.py, without python, it finds that by itself)"
    )


def _of_the_cluster() -> str | None:
    """The Python of Ray's workers, by the raylet that this process descends from; None where it descends from none."""
    process = os.getpid()
    while process > 1:
        try:
            arguments = Path(f"/proc/{process}/cmdline").read_text(errors="replace").split("\0")
            # The name of a program, in parentheses, may hold anything.
            process = int(Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            return None
        for argument in arguments:
            if argument.startswith(_WORKERS):
                return argument.removeprefix(_WORKERS).split()[0]
    return None


C = TypeVar("C")

_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"

log = logging.getLogger(__name__)


def _known() -> dict[str, Any]:
    try:
        known = json.loads(os.environ.get(_CONFIG, "{}"))
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


def identifier() -> str | None:
    """The id under which the job was submitted; None where it was not."""
    metadata = _known().get("metadata")
    known = metadata.get("job_submission_id") if isinstance(metadata, dict) else None
    return None if known is None else str(known)


def keeping_its_output(config: C) -> C:
    """`config`, a job's, whose `out` outlives the job.

    A submitted job runs in a copy of its working directory, which Ray deletes some time later. Raises UserError there
    for a relative `out`. But the demo, a job that is given neither photos nor an `out`, gets a folder in `dim-runs` of
    the home folder. The other nodes don't have that folder, so the demo leaves the cluster alone: its Ray will be its
    own, on this machine.
    """
    out = getattr(config, "out", None)
    if out is None or identifier() is None or "://" in out or out.startswith(("/", "~")):
        return config
    if getattr(config, "manifest", None) is None and out == _default(config, "out"):
        kept = str(Path.home() / "dim-runs" / Path(out).name)
        log.info("running the demo on this machine alone, with its output in %s, as no --out is given", kept)
        for name in (_CONFIG, "RAY_ADDRESS"):
            os.environ.pop(name, None)
        return dataclasses.replace(config, out=kept)  # type: ignore[type-var]
    raise UserError(
        f"--out {out!r} is relative, and would be lost with this submitted job's copy of the working directory; write "
        "s3://…, gs://…, or a whole path that starts with /"
    )


def _default(config: Any, name: str) -> Any:
    return next(field.default for field in dataclasses.fields(config) if field.name == name)
