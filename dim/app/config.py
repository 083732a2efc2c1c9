"""How a job is configured: each job has a frozen dataclass, with a field for each flag and key of the YAML file.

`option` declares such a field. Other functions check values and read YAML files. `cli` makes the flags from the fields.
"""

import contextlib
import dataclasses
import difflib
import math
import textwrap
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from dim.errors import UserError, quoted

MOST_SEED = 2**31 - 1  # the largest seed, as FAISS takes signed integers of 32 bits


class Options:
    """The root of dataclasses that have flags in common, of which a job's configuration may have several as bases.

    The `__post_init__` of such a class checks its own flags and then calls that of `super()`, so that the flags of all
    bases are checked, in whichever order they are.
    """

    def __post_init__(self) -> None:
        """Checks the flags. Raises UserError if a value is out of range."""


def option(default: Any = dataclasses.MISSING, help: str = "", **extra: Any) -> Any:
    """Declares a field of a configuration, and `help`, its line in `--help`. Without a `default`, the flag is required.

    `extra` may have `positional=True`, which makes an argument without a flag; `group="…"`, the heading above the flag
    in `--help`; `metavar="…"`, the word that stands for the value there; and `presets`, which maps each value of the
    flag to values of other fields (see `with_presets`).
    """
    return field(default=default, metadata={"help": help, **extra})


def with_presets(values: dict[str, Any], config: Any) -> dict[str, Any]:
    """Adds the values of the chosen presets to `values`, which has those that the user gave; these win."""
    for known in dataclasses.fields(config):
        if presets := known.metadata.get("presets"):
            values = presets[values.get(known.name, known.default)] | values
    return values


def flag_name(name: str) -> str:
    """The flag of the field `name`: `--image-size` for `image_size`."""
    return "--" + name.replace("_", "-")


def nearest(name: str, known: list[str]) -> str:
    """A hint for an error message: the word of `known` that is nearest to `name`, or all of `known` if none is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def one_of(name: str, value: str, known: list[str], where: str = "") -> str:
    """Returns `value` if it is in `known`. Else raises UserError with a hint and `where`, the place of the value."""
    if value not in known:
        raise UserError(f"unknown {name} {quoted(value)}{where and f' in {where}'}; {nearest(value, known)}")
    return value


def require_at_least(config: Any, least: Mapping[str, float]) -> None:
    """Raises UserError if a field of `config` is NaN or less than its value in `least`. A field may be None."""
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and not value >= bound:
            raise UserError(f"{flag_name(name)} must be at least {bound}, not {value}")


def require_text(name: str, value: Any) -> None:
    """Raises UserError if `value` is an empty string or not valid Unicode.

    An unset shell variable gives an empty string, and an empty path would mean the working directory. If a byte is not
    UTF-8, Python turns it into half a surrogate pair, which can be neither written nor shown.
    """
    if value == "":
        raise UserError(f"{name} is empty; give it a value, or leave it out")
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name} must be UTF-8, not {quoted(value)}") from error


class Kind(typing.NamedTuple):
    """The meaning of a field's annotation. `type` is the type of one value; `choices` are the values of a Literal."""

    type: Any
    repeated: bool
    optional: bool
    choices: tuple[Any, ...] | None


def kind_of(annotation: Any) -> Kind:
    """The kind of a field whose type is `annotation`: a type, a Literal, or a tuple of either; `| None` may follow."""
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


_MAX_YAML_BYTES = 100_000  # PyYAML takes seconds for a larger file
_MAX_WHOLE_NUMBER = 2**63


def read_yaml(path: str, config: type[Any]) -> dict[str, Any]:
    """Reads the fields of `config` that the YAML file at `path` sets. A key is written `image-size` or `image_size`.

    Raises UserError if the file cannot be read, is too large, is not a mapping, holds a whole number of more than 63
    bits, has an unknown key, or has a value of the wrong type.
    """
    from dim.io import files  # noqa: PLC0415  (Arrow and YAML are slow to import, and --help needs neither)

    files.require_at_most(path, _MAX_YAML_BYTES, "a configuration")
    try:
        document = _parsed(files.read_bytes(path))
    except OSError as error:
        raise UserError(f"cannot read the configuration {path!r}: {files.reason(error)}") from error
    except Exception as error:  # any other exception comes from the file's content
        raise UserError(f"{path!r} is not YAML: {textwrap.shorten(str(error), 400, placeholder=' …')}") from error
    if not isinstance(document, dict):
        raise UserError(f"{path!r} must hold a mapping of flags to values, not {type(document).__name__}")
    return _values_of(document, config, repr(path))


def _parsed(content: bytes) -> Any:
    import yaml  # noqa: PLC0415

    def whole_number(loader: Any, node: Any) -> int:
        # Very long numbers can't be printed, take quadratic time to parse, and may share one hash as keys of a
        # dictionary.
        if len(node.value) > 100 or abs(value := loader.construct_yaml_int(node)) >= _MAX_WHOLE_NUMBER:
            raise yaml.constructor.ConstructorError(
                problem="a whole number must have at most 63 bits", problem_mark=node.start_mark
            )
        return int(value)

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("tag:yaml.org,2002:int", whole_number)
    return Loader(content).get_single_data()


def _values_of(document: dict[Any, Any], config: type[Any], where: str) -> dict[str, Any]:
    """The fields of the dataclass `config` that the mapping `document` sets. Messages say `where` the mapping is."""
    known = typing.get_type_hints(config)
    values = {}
    for key, value in document.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise UserError(f"unknown key {quoted(key)} in {where}; {nearest(name, list(known))}")
        values[name] = _typed(f"{key} in {where}", value, kind_of(known[name]))
    return values


def _nested(name: str, value: Any, config: Any) -> Any:
    """Makes an object of the dataclass `config` from the mapping `value`. Raises UserError if a key is missing."""
    if not isinstance(value, dict):
        raise UserError(f"{name} must hold mappings, not {quoted(value)}")
    values = _values_of(value, config, name)
    for known in dataclasses.fields(config):
        if known.name not in values and known.default is dataclasses.MISSING:
            key = known.name.replace("_", "-")
            raise UserError(f"{name}: an entry lacks the key {key!r} ({known.metadata['help']})")
    return config(**values)


# pydantic would not make this shorter: the conversions and the messages would still be needed.
_TYPE_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _typed(name: str, value: Any, kind: Kind) -> Any:
    """Converts a YAML `value` to the `kind` of its field. Raises UserError, with `name`, if the type is wrong."""
    if value is None and kind.optional:
        return None
    if kind.repeated:
        one = kind._replace(repeated=False, optional=False)
        return tuple(_typed(name, part, one) for part in (value if isinstance(value, list) else [value]))
    if dataclasses.is_dataclass(kind.type):
        return _nested(name, value, kind.type)
    value = _converted(value, kind.type)
    require_text(name, value)
    if type(value) is not kind.type or (kind.type is float and not math.isfinite(value)):
        raise UserError(f"{name} must be {_TYPE_WORDS[kind.type]}, not {quoted(value)}")
    if kind.choices and value not in kind.choices:
        raise UserError(f"{name} must be one of {', '.join(map(str, kind.choices))}, not {quoted(value)}")
    return value


def _converted(value: Any, kind: type) -> Any:
    # YAML reads an unquoted 7 as a number, although it may be an id. It reads 1e-5 as text.
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value
