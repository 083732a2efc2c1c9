"""Several drivers that make one store (`--part I/N`).

Each driver writes the shards of its part into the store, and has a folder of its own there, part-I-of-N, with its lock,
its run.json and its log. The driver that ends last opens the store itself, finds nothing left to do, and seals it. A
driver first takes its own lock and then looks at the others, so that of two that start at the same time at least one
sees the other.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from dim.app import folder_lock, output_folder
from dim.extract import shard_log
from dim.extract.config import ExtractConfig
from dim.io import files, lease
from dim.io.seal import Facts

_NAME = re.compile(r"part-\d+-of-\d+")
_SAME = ("split", "shard_rows")  # flags that parts of one store have in common


def folder(config: ExtractConfig) -> str:
    """The folder of the part `config.part`."""
    number, count = config.share
    return files.join(config.out, f"part-{number}-of-{count}")


def records(out: str) -> dict[str, dict[str, Any]]:
    """The run.json of each part in the store `out`, by the part's folder."""
    found = {where: output_folder.record_of(where) for where in _folders(out)}
    return {where: record for where, record in found.items() if record}


def _folders(out: str) -> list[str]:
    names = files.folders(out) if files.is_folder(out) else []
    return [files.join(out, name) for name in names if _NAME.fullmatch(name)]


def logged(out: str) -> dict[str, Facts]:
    """The facts in the logs of the store `out` and of its parts. Leaves out shards on which the logs disagree."""
    found: dict[str, Facts] = {}
    differing = set()
    for where in (out, *_folders(out)):
        for name, facts in shard_log.read(where).items():
            if found.setdefault(name, facts) != facts:
                differing.add(name)
    return {name: facts for name, facts in found.items() if name not in differing}


def delete_logs(out: str) -> None:
    """Deletes the logs of the parts, whose facts are in the log of the store `out` by now."""
    files.delete_all(files.join(where, shard_log.NAME) for where in _folders(out))


def require_none_running(out: str) -> None:
    """Raises UserError if a driver is at work on a part of the store `out`."""
    for where, record in records(out).items():
        if record.get("status") != output_folder.DONE:
            folder_lock.require_free(where)  # a killed driver also leaves the status "running"


def left(config: ExtractConfig) -> list[str]:
    """The parts that have not been done with the manifest and the flags of `config`, such as "2/4"."""
    _, count = config.share
    known = records(config.out)
    parts = [replace(config, part=f"{number}/{count}") for number in range(1, count + 1)]
    return [str(part.part) for part in parts if not _is_done(known.get(folder(part)), config)]


def _is_done(record: dict[str, Any] | None, config: ExtractConfig) -> bool:
    if record is None or record.get("status") != output_folder.DONE:
        return False
    flags = record.get("configuration", {})
    same = all(flags.get(name) == getattr(config, name) for name in _SAME)
    return same and bool(files.absolute(record["inputs"]["manifest"]) == files.absolute(config.manifest))


def computed(config: ExtractConfig) -> tuple[int, float]:
    """The photos that all parts have computed, and the sum of their rates, in photos a second."""
    parts = [replace(config, part=f"{number}/{config.share[1]}") for number in range(1, config.share[1] + 1)]
    known = records(config.out)
    counts = [known[folder(part)]["counts"] for part in parts if folder(part) in known]
    return sum(one["computed"] for one in counts), round(sum(one["images_per_second"] for one in counts), 2)


@contextlib.contextmanager
def writing(config: ExtractConfig) -> Iterator[tuple[lease.Claim, ...]]:
    """Within the block, this process, which holds the part's folder, may write shards into the store.

    Yields the claims under which tasks may write there, too. Raises UserError if another driver is at work on the whole
    store.
    """
    folder_lock.require_free(config.out)
    own = [claim for claim in lease.claims() if claim.folder == folder(config)]
    claims = tuple(replace(claim, folder=config.out) for claim in own)
    with lease.under(claims):
        yield claims
