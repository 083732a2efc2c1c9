"""Pickles of other people, read without running anything that they ask for: only dicts, lists, text and numbers.

A pickle is a program for a small machine. Its danger is in the instructions that fetch a class or function by name.
Here these are refused, so nothing can be called. (References to objects outside, pickle refuses by itself.)
"""

import io
import pickle
import pickletools
import textwrap
from typing import Any

from dim import files
from dim.errors import UserError

_MAX_BYTES = 16 * 2**20
# A tuple within a tuple and so on overflows the C stack when it is hashed.
_MAX_TUPLES = 10_000
# Of larger numbers, any many have the same hash, so that a dict of them takes the square of their number; and what
# ground truth holds, positions and pixels, is smaller.
_MAX_NUMBER = 2**53


class _BuiltInTypesOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only built-in types are allowed")


def unpickle(uri: str) -> Any:
    """The object in the pickle at `uri`, made of dicts, lists, tuples, sets, text, bytes, numbers, booleans and None.

    Raises UserError where the file is missing, too large or corrupt, holds a whole number of more than 53 bits, or asks
    for anything else, which it names.
    """
    files.require_at_most(uri, _MAX_BYTES, "a pickle")
    try:
        content = files.read_bytes(uri)
    except OSError as error:
        raise UserError(f"cannot read {uri!r}: {' '.join(str(error).split())}") from error
    try:
        _check_instructions(content)
        return _BuiltInTypesOnly(io.BytesIO(content)).load()
    except Exception as error:  # on a corrupt file, the machine fails in almost any way
        reason = textwrap.shorten(str(error), 300, placeholder=" …") or type(error).__name__
        raise UserError(f"{uri!r} is not read as a pickle: {reason}") from error


def _check_instructions(content: bytes) -> None:
    """Refuses what would exhaust memory, the stack or patience before any object is made."""
    tuples = 0
    for instruction, argument, _ in pickletools.genops(content):
        tuples += instruction.name.startswith(("TUPLE", "FROZENSET"))
        if tuples > _MAX_TUPLES:
            raise pickle.UnpicklingError(f"it has more than {_MAX_TUPLES:,} tuples")
        if isinstance(argument, int) and abs(argument) >= _MAX_NUMBER:
            raise pickle.UnpicklingError(f"a whole number has more than {_MAX_NUMBER.bit_length() - 1} bits")
        # The memo is a list, made as long as its largest index.
        if instruction.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise pickle.UnpicklingError(f"its memo index {argument} is larger than the file")
