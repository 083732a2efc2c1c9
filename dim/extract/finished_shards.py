"""The shards that belong to a finished store, and the rows, size and checksum that each must have.

The seal in run.json (`dim.io.seal`) lists them. A store that was made before there were seals has no such list. Then
the statistics beside the shards, and the number of images in run.json, say which shards and rows there must be.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from dim.app import output_folder
from dim.errors import UserError
from dim.io import files, seal
from dim.io.seal import Facts, Seal
from dim.io.storage import parallel_map

_PREFIX, _SHARD, _STATISTICS = "part-", ".parquet", ".json"
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
        return files.join(self.folder, f"{self.name}{_SHARD}")

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
                raise UserError(
                    f"{self.uri!r} is damaged ({fact} {value}, which must be {self.facts[fact]}); "
                    "run the same extract.py again"
                )


def sealed(folder: str, names: list[str]) -> Seal:
    """Makes the seal of the shards `names` from their statistics, for run.json."""
    return {f"{name}{_SHARD}": facts for name, facts in _all_statistics(folder, names).items()}


def _all_statistics(folder: str, names: list[str]) -> dict[str, Facts]:
    return dict(zip(names, parallel_map(partial(_statistics, folder), names), strict=True))


def _statistics(folder: str, name: str) -> Facts:
    found: Any = files.read_json(files.join(folder, f"{name}{_STATISTICS}"))
    known = found if isinstance(found, dict) else {}
    return {fact: known[fact] for fact, kind in _FACTS.items() if isinstance(known.get(fact), kind)}


def belonging(folder: str) -> list[Shard]:
    """Lists the shards of the finished store `folder`, sorted by name.

    Raises UserError if the shards or their sizes differ from those in run.json, or if the job that writes the folder
    has not finished.
    """
    listed = output_folder.verified_seal(folder)
    present = [name for name in files.names(folder) if name.startswith(_PREFIX)]
    shards = [name.removesuffix(_SHARD) for name in present if name.endswith(_SHARD)]
    if listed is None:
        facts = _of_statistics(folder, shards, [name for name in present if name.endswith(_STATISTICS)])
    else:
        # run.json may list other files, too, such as those of an index.
        facts = {name.removesuffix(_SHARD): known for name, known in listed.items() if name.startswith(_PREFIX)}
        if strange := sorted({*shards} - facts.keys()):
            uri = files.join(folder, f"{strange[0]}{_SHARD}")
            raise UserError(
                f"{uri!r} is not one of the shards that {output_folder.RECORD} lists; "
                "remove it, or run the same extract.py again"
            )
    infos = files.infos([files.join(folder, f"{name}{_SHARD}") for name in facts])
    sizes = {name: info.size for name, info in zip(facts, infos, strict=True)}
    return [Shard(folder, name, facts[name], sizes[name]) for name in sorted(facts)]


def _of_statistics(folder: str, shards: list[str], statistics: list[str]) -> dict[str, Facts]:
    described = [name.removesuffix(_STATISTICS) for name in statistics]
    if alone := sorted({*shards} ^ {*described}):
        missing = _STATISTICS if alone[0] in shards else _SHARD
        raise UserError(f"no file {files.join(folder, alone[0] + missing)!r}; run the same extract.py again")
    facts = _all_statistics(folder, shards)
    counts = (output_folder.record_of(folder) or {}).get("counts")
    images = counts.get("images") if isinstance(counts, dict) else None
    rows = sum(known.get("rows", 0) for known in facts.values())
    if images not in (None, rows):
        raise UserError(
            f"{folder!r} has {rows} rows in its shards, and {images} images in its {output_folder.RECORD}; run the "
            "same extract.py again"
        )
    return facts
