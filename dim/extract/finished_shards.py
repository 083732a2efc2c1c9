"""The shards that belong to a finished store, and the rows, size and checksum that each must have.

The seal in run.json (`dim.io.seal`) lists them. A store that was made before there were seals has no such list. Then
the statistics beside the shards, `part-<hash>.json`, and the number of images in run.json, say which shards and rows
there must be.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from dim.app import output_folder
from dim.errors import UserError
from dim.io import files, seal
from dim.io.seal import Facts, Seal
from dim.io.storage import parallel_map

SHARD, STATISTICS = ".parquet", ".json"
RENEW = "delete it, and run the same extract.py again"
_PREFIX = "part-"
_FACTS = {"rows": int, "bytes": int, "sha256": str}


@dataclass(frozen=True)
class Shard:
    """The shard `name` of the store `folder`, whose file has `size` bytes.

    `facts` are the rows, bytes and sha256 that the file must have. Unknown facts are absent.
    """

    folder: str
    name: str
    facts: Facts
    size: int

    @property
    def uri(self) -> str:
        """The shard's file."""
        return files.join(self.folder, f"{self.name}{SHARD}")

    def read(self) -> bytes:
        """The content of the shard's file. Raises UserError if it cannot be read."""
        try:
            return files.read_bytes(self.uri)
        except OSError as error:
            reason = files.reason(error)
            raise UserError(f"cannot read {self.uri!r} ({reason}); run the same extract.py again") from error

    def require(self, rows: int, content: bytes | None = None) -> None:
        """Raises UserError unless `rows`, the file's size and `content` (if given) agree with the facts."""
        found: dict[str, Any] = {"rows": rows, "bytes": self.size}
        if content is not None:
            found["sha256"] = seal.sha256(content)
        for fact, value in found.items():
            if self.facts.get(fact) not in (None, value):
                raise UserError(f"{self.uri!r} is damaged ({fact} {value}, which must be {self.facts[fact]}); {RENEW}")


def is_shard(name: str) -> bool:
    """Whether a file of this name is a shard."""
    return name.startswith(_PREFIX) and name.endswith(SHARD) and "/" not in name


def sealed(facts: Mapping[str, Facts]) -> Seal:
    """Makes the seal of a store, for run.json, from the facts of each shard."""
    return {f"{name}{SHARD}": {fact: known[fact] for fact in _FACTS} for name, known in facts.items()}


def statistics(folder: str, name: str) -> Facts:
    """The rows, bytes and sha256 in the statistics of a shard, as far as they are known."""
    found: Any = files.read_json(files.join(folder, f"{name}{STATISTICS}"))
    known = found if isinstance(found, dict) else {}
    return {fact: known[fact] for fact, kind in _FACTS.items() if isinstance(known.get(fact), kind)}


def belonging(folder: str) -> list[Shard]:
    """Lists the shards of the finished store `folder`, sorted by name. Costs a listing of the folder.

    Raises UserError if the shards or their sizes differ from those in run.json, or if the job that writes the folder
    has not finished.
    """
    record = output_folder.finished_record(folder)
    listed = seal.from_record(record, folder) if record else None
    sizes = files.sizes(folder)
    if record is None or listed is None:
        facts = _of_statistics(folder, sizes, record or {})
    else:
        # run.json may list other files, too, such as those of an index.
        shards = {name: known for name, known in listed.items() if is_shard(name)}
        seal.require_sizes(folder, shards, sizes, record["job"])
        facts = {name.removesuffix(SHARD): known for name, known in shards.items()}
        if strange := sorted({name for name in sizes if is_shard(name)} - shards.keys()):
            uri = files.join(folder, strange[0])
            raise UserError(
                f"{uri!r} is not one of the shards that {output_folder.RECORD} lists; "
                "remove it, or run the same extract.py again"
            )
    return [Shard(folder, name, facts[name], sizes[f"{name}{SHARD}"]) for name in sorted(facts)]


def _of_statistics(folder: str, sizes: Mapping[str, int], record: Mapping[str, Any]) -> dict[str, Facts]:
    described = {
        name.removesuffix(STATISTICS) for name in sizes if name.startswith(_PREFIX) and name.endswith(STATISTICS)
    }
    names = sorted(name.removesuffix(SHARD) for name in sizes if is_shard(name))
    if lost := sorted(described - {*names}):
        raise UserError(f"no file {files.join(folder, lost[0] + SHARD)!r}; run the same extract.py again")
    known = [name for name in names if name in described]
    facts: dict[str, Facts] = {name: {} for name in names}
    facts |= zip(known, parallel_map(partial(statistics, folder), known), strict=True)
    counts = record.get("counts")
    images = counts.get("images") if isinstance(counts, dict) else None
    rows = sum(facts[name].get("rows", 0) for name in known)
    if known == names and images not in (None, rows):
        raise UserError(
            f"{folder!r} has {rows} rows in its shards, and {images} images in its {output_folder.RECORD}; run the "
            "same extract.py again"
        )
    return facts
