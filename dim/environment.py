"""The environment of a job, checked before it begins: what is wrong would else end it later, deep in Ray or Keras."""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from dim import scratch
from dim.errors import UserError, quoted

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
