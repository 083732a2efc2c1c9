"""The command line of every job: flags and a YAML file become a configuration, and the result becomes a line of JSON.

The modules of `dim.jobs` call `main`, which runs a job and exits with its status. `parse` makes the configuration.
"""

import argparse
import contextlib
import dataclasses
import logging
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar, get_type_hints

from dim.app import config as configuration
from dim.app import environment, logs, terminal
from dim.errors import GateNotMet, JobFailed, UserError
from dim.io import strict_json, uris

C = TypeVar("C")

log = logging.getLogger(__name__)

DONE, FAILED, WRONG_USAGE, GATE = 0, 1, 2, 3
INTERRUPTED = 128 + signal.SIGINT


_JOB_FILE = re.compile(r"(?:python jobs/|(?<![\w/]))(\w+)\.py\b")  # how `--help` names jobs


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")

    def format_help(self) -> str:
        """The text of `--help`. That of the console command `dim` names jobs as the command does."""
        text = super().format_help()
        return _JOB_FILE.sub(r"dim \1", text) if self.prog.startswith("dim ") else text


def _whole_number(text: str) -> int:
    with contextlib.suppress(ValueError):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")


def _number(text: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number")


def _floats(text: str) -> tuple[float, ...]:
    try:
        return tuple(_number(part) for part in text.split(","))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,0.5") from error


_METAVARS = {int: "N", float: "F"}
_READERS = {int: _whole_number, float: _number}


def _add_field(parser: Any, field: dataclasses.Field[Any], annotation: Any) -> None:
    kind, repeated, _, choices = configuration.kind_of(annotation)
    if dataclasses.is_dataclass(kind):
        return  # the value is a mapping, which only a YAML file can hold
    extra: dict[str, Any] = {"help": field.metadata["help"], "default": argparse.SUPPRESS}
    if field.default is dataclasses.MISSING:
        extra["help"] += "" if field.metadata.get("positional") else " (required)"
    elif field.default not in (None, ()) and kind is not bool:
        shown = ",".join(map(str, field.default)) if repeated else field.default
        extra["help"] += f" (default: {str(shown).replace('%', '%%')})"
    if field.metadata.get("positional"):
        nargs = None if field.default is dataclasses.MISSING else "?"
        parser.add_argument(field.name, metavar=field.name.upper(), nargs=nargs, choices=choices, **extra)
        return
    flag = configuration.flag_name(field.name)
    if kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **extra)
    elif repeated and kind is float:
        parser.add_argument(flag, type=_floats, metavar="F,F,…", **extra)
    else:
        metavar = None if choices else field.metadata.get("metavar", _METAVARS.get(kind, "TEXT"))
        action = "append" if repeated else "store"
        read = _READERS.get(kind, kind)
        parser.add_argument(flag, type=read, choices=choices, metavar=metavar, action=action, **extra)


def _help_order(field: dataclasses.Field[Any]) -> tuple[int, bool]:
    """Sorts `--help`: inputs and outputs come first, and the machine last. In a group, required flags come first."""
    group = field.metadata.get("group")
    return (group == "machine") - (group == "input and output"), field.default is not dataclasses.MISSING


def parser_of(config: type[C], description: str) -> argparse.ArgumentParser:
    """The argument parser for the dataclass `config`, with a flag or an argument for each field."""
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    hints = get_type_hints(config)
    groups: dict[str, Any] = {}
    for field in sorted(dataclasses.fields(config), key=_help_order):  # type: ignore[arg-type]
        group = field.metadata.get("group")
        if group and group not in groups:
            groups[group] = parser.add_argument_group(group)
        _add_field(groups[group] if group else parser, field, hints[field.name])
    parser.add_argument("--config", metavar="FILE", help="YAML file of flags; flags on the command line override it")
    parser.add_argument("-v", "--verbose", action="store_true", help="show Ray's and TensorFlow's own messages")
    return parser


def parse(config: type[C], description: str, arguments: Sequence[str]) -> tuple[C, bool]:
    """Makes the configuration from the command line `arguments` and the YAML file that `--config` names.

    Returns the configuration, and whether `--verbose` was given. Raises UserError if a flag is wrong.
    """
    known, unknown = parser_of(config, description).parse_known_args(arguments)
    fields = {field.name: field for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    if unknown:
        given = unknown[0].partition("=")[0]
        names = [name for name, field in fields.items() if not field.metadata.get("positional")]
        flags = [configuration.flag_name(name) for name in (*names, "config", "verbose", "help")]
        raise UserError(f"unknown argument {given!r}; {configuration.nearest(given, flags)}")
    values = vars(known)
    verbose, path = values.pop("verbose"), values.pop("config")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if path:
        values = configuration.read_yaml(path, config) | values
    values = configuration.with_presets(values, config)
    hints = get_type_hints(config)
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise UserError(f"{_written_name(field, hints[name])} is required (see --help)")
    for name, value in values.items():
        for text in value if isinstance(value, tuple) else (value,):
            configuration.require_text(_written_name(fields[name], hints[name]), text)
            uris.require_no_secret(str(text))
    return config(**values), verbose


def _written_name(field: dataclasses.Field[Any], annotation: Any) -> str:
    """What a user writes to set this field, for error messages."""
    if field.metadata.get("positional"):
        return field.name.upper()
    if dataclasses.is_dataclass(configuration.kind_of(annotation).type):
        return f"the key {field.name!r} in the YAML file of --config"
    return configuration.flag_name(field.name)


def _announcement(values: Any, description: str) -> str:
    """The log line that announces a job: the first line of `description`, and the settings that are not defaults."""
    settings = []
    for field in sorted(dataclasses.fields(values), key=_help_order):
        value = getattr(values, field.name)
        parts = value if isinstance(value, tuple) else (value,)
        if value == field.default or any(map(dataclasses.is_dataclass, parts)):
            continue
        flag = "" if field.metadata.get("positional") else f"{configuration.flag_name(field.name)} "
        settings.append(flag + ",".join(map(str, parts)))
    return f"{description.partition(chr(10))[0].rstrip('.:')}: {' '.join(settings) or 'the defaults'}"


def main(run: Callable[[C], dict[str, Any]], config: type[C], description: str | None) -> NoReturn:
    """Runs a job and exits with a status: 0 done, 1 failed, 2 wrong usage or input, 3 gate not met, 130 interrupted.

    The last line on stdout is a JSON object with the result of `run`, and the `seconds` that the job took. `config` is
    the dataclass that `run` takes. `description` is the text of `--help`; its first line also announces the job.
    """
    started = time.monotonic()
    result: dict[str, Any] | None = None
    status, verbose = DONE, False
    try:
        environment.require_ray()
        values, verbose = parse(config, description or "", sys.argv[1:])
        environment.require_usable()
        os.environ |= environment.tensorflow_variables()  # a local Ray inherits them
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # for `ray job stop`, which then acts as Ctrl-C
        with terminal.of_job(verbose):
            log.info("%s", _announcement(values, description or ""))
            try:
                result = run(environment.with_lasting_output(values))
            except SystemExit as ended:  # Ray Train raises SystemExit on Ctrl-C
                raise KeyboardInterrupt from ended
    except UserError as error:
        logs.say(logging.ERROR, f"error: {error}")
        status = WRONG_USAGE
    except JobFailed as error:
        logs.say(logging.ERROR, f"failed: {error}")
        status = FAILED
    except GateNotMet as error:
        logs.say(logging.ERROR, f"gate not met: {error}")
        result, status = error.result, GATE
    except KeyboardInterrupt:
        logs.say(logging.WARNING, "interrupted; run the same command again to resume")
        status = INTERRUPTED
    except OSError as error:  # a disk or an object store failed
        if verbose:
            logs.say(logging.DEBUG, str(error), bug=error)
        reason = " ".join(str(error).split())
        logs.say(logging.ERROR, f"failed: {reason}; once this is fixed, run the same command again")
        status = FAILED
    except Exception as error:
        logs.say(logging.ERROR, f"failed: {type(error).__name__}: {error}", bug=error)
        status = FAILED
    if result is not None:
        result["seconds"] = round(time.monotonic() - started, 3)
        print(strict_json.dumps(result), flush=True)
    sys.exit(status)
