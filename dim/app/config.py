"""Configuration: one frozen dataclass a job, its fields the job's flags and the keys of its YAML file."""

import contextlib
import dataclasses
import difflib
import math
import textwrap
import types
import typing
from dataclasses import field
from typing import Any

from dim.errors import UserError, quoted

MOST_SEED = 2**31 - 1  # in FAISS, whose integers are the shortest


def option(default: Any = dataclasses.MISSING, help: str = "", **extra: Any) -> Any:
    """A field of a configuration: its default (none: required), its help line, and
    `positional=True` for an argument without a flag or `group="…"` for its heading in `--help`.
    """
    return field(default=default, metadata={"help": help, **extra})


def flag_name(name: str) -> str:
    """`image_size` → `--image-size`."""
    return "--" + name.replace("_", "-")


def nearest(name: str, known: list[str]) -> str:
    """A hint that names the known word nearest to `name`, or lists them all."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def one_of(name: str, value: str, known: list[str]) -> str:
    """`value`, if it is one of `known`; else a UserError that names the nearest."""
    if value not in known:
        raise UserError(f"unknown {name} {quoted(value)}; {nearest(value, known)}")
    return value


class Kind(typing.NamedTuple):
    """What a field's annotation means: the type of one value, and its choices if it is a Literal."""

    type: Any
    repeated: bool
    optional: bool
    choices: tuple[Any, ...] | None


def kind_of(annotation: Any) -> Kind:
    """The kind of a field: a plain type, a Literal or a tuple of one of these, each perhaps `| None`."""
    optional = repeated = False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
        optional = True
    if typing.get_origin(annotation) is tuple:
        annotation, repeated = typing.get_args(annotation)[0], True
    if typing.get_origin(annotation) is typing.Literal:
        choices = typing.get_args(annotation)
        return Kind(type(choices[0]), repeated, optional, choices)
    return Kind(annotation, repeated, optional, None)


def annotations(config: type[Any]) -> dict[str, Any]:
    """The resolved annotation of each field of `config`."""
    return typing.get_type_hints(config)


# PyYAML takes seconds for so many.
_MAX_YAML_BYTES = 100_000
_MAX_WHOLE_NUMBER = 2**63


def read_yaml(path: str, config: type[Any]) -> dict[str, Any]:
    """The fields of `config` that the YAML file at `path` sets, its keys written as flags or as fields (`image-size`,
    `image_size`).

    Raises UserError where the file cannot be read, is too large, is no mapping, holds a whole number of more than 63
    bits, or has an unknown key or a value of another type.
    """
    from dim.io import files  # noqa: PLC0415  (Arrow and YAML take longer than all else that --help needs)

    files.require_at_most(path, _MAX_YAML_BYTES, "a configuration")
    try:
        document = _loaded(files.read_bytes(path))
    except OSError as error:
        raise UserError(f"cannot read the configuration {path!r}: {files.reason(error)}") from error
    except Exception as error:  # whatever reading a stranger's file raises, the file is at fault
        raise UserError(f"{path!r} is not YAML: {textwrap.shorten(str(error), 400, placeholder=' …')}") from error
    if not isinstance(document, dict):
        raise UserError(f"{path!r} must hold a mapping of flags to values, not {type(document).__name__}")
    return _fields(document, config, repr(path))


def _loaded(content: bytes) -> Any:
    import yaml  # noqa: PLC0415

    def whole_number(loader: Any, node: Any) -> int:
        # Longer ones cannot be shown, take the square of their length to be read, or share one hash as keys.
        if len(node.value) > 100 or abs(value := loader.construct_yaml_int(node)) >= _MAX_WHOLE_NUMBER:
            raise yaml.constructor.ConstructorError(
                problem="a whole number must have at most 63 bits", problem_mark=node.start_mark
            )
        return int(value)

    class Loader(yaml.SafeLoader):
        """SafeLoader, but for its whole numbers."""

    Loader.add_constructor("tag:yaml.org,2002:int", whole_number)
    return Loader(content).get_single_data()


def _fields(document: dict[Any, Any], config: type[Any], where: str) -> dict[str, Any]:
    """The fields of the dataclass `config` that the mapping `document` sets; `where` it stands."""
    known = annotations(config)
    values = {}
    for key, value in document.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise UserError(f"unknown key {quoted(key)} in {where}; {nearest(name, list(known))}")
        values[name] = _typed(f"{key} in {where}", value, kind_of(known[name]))
    return values


def _made(name: str, value: Any, config: Any) -> Any:
    """The dataclass `config` from the mapping `value`; raises UserError, naming `name`, for a key that is missing."""
    if not isinstance(value, dict):
        raise UserError(f"{name} must hold mappings, not {quoted(value)}")
    values = _fields(value, config, name)
    for known in dataclasses.fields(config):
        if known.name not in values and known.default is dataclasses.MISSING:
            raise UserError(f"{name}: {known.name.replace('_', '-')} is required, as in {known.metadata['help']!r}")
    return config(**values)


def require_text(name: str, value: Any) -> None:
    """Raises UserError where `value` is an empty text, as a variable that is not set gives one, whose path would be the
    working directory; or one that is no Unicode: half a surrogate pair, which stands for what is no UTF-8, can be
    neither written nor shown.
    """
    if value == "":
        raise UserError(f"{name} is empty; give it a value, or leave it out")
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name} must be UTF-8, not {quoted(value)}") from error


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _typed(name: str, value: Any, kind: Kind) -> Any:
    """A YAML `value` as a field of this `kind` holds it; raises UserError, naming `name`, where it is of another."""
    if value is None and kind.optional:
        return None
    if kind.repeated:
        one = kind._replace(repeated=False, optional=False)
        return tuple(_typed(name, part, one) for part in (value if isinstance(value, list) else [value]))
    if dataclasses.is_dataclass(kind.type):
        return _made(name, value, kind.type)
    value = _converted(value, kind.type)
    require_text(name, value)
    if type(value) is not kind.type or (kind.type is float and not math.isfinite(value)):
        raise UserError(f"{name} must be {_NAMES[kind.type]}, not {quoted(value)}")
    if kind.choices and value not in kind.choices:
        raise UserError(f"{name} must be one of {', '.join(map(str, kind.choices))}, not {quoted(value)}")
    return value


def _converted(value: Any, kind: type) -> Any:
    # YAML reads an unquoted 7 as a number where an id is meant, and 1e-5 as text.
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value
