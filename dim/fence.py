"""What must be true while a folder is written: `dim.files` asks here before each write, so that none can forget to."""

import contextlib
from collections.abc import Callable, Iterator

_guards: list[tuple[str, Callable[[], None]]] = []


@contextlib.contextmanager
def guarded(folder: str, require: Callable[[], None]) -> Iterator[None]:
    """Within the block, whatever this process writes into `folder` is written only where `require` raises nothing."""
    guard = (f"{folder.rstrip('/')}/", require)
    _guards.append(guard)
    try:
        yield
    finally:
        _guards.remove(guard)


def require_open(uri: str) -> None:
    """Raises whatever is raised by the guard of a folder that holds `uri`."""
    for folder, require in list(_guards):
        if f"{uri}/".startswith(folder):
            require()
