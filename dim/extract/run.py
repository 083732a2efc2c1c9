"""An extraction whose input has been checked: computes the rows that the store lacks, and seals the store.

`Run.whole` asks `dim.extract.resume` which rows are left and sends them through the pipeline. The same command
therefore resumes an interrupted run. `Run.part` is what each of several drivers does (`dim.extract.parts`).
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from dim.app import output_folder, progress, tasks
from dim.errors import InUse, count_reasons
from dim.extract import finished_shards, own_process, parts, resume, store
from dim.extract.config import ExtractConfig
from dim.extract.embedder import Recipe
from dim.extract.embedding import Embedding
from dim.extract.plan import Plan
from dim.extract.resources import resources
from dim.extract.resume import Found
from dim.extract.shard_log import ShardLog
from dim.extract.writer import Writer, write_all
from dim.io import files
from dim.io.seal import Facts

log = logging.getLogger(__name__)

_SHARDS_A_TASK = 16
SEVERAL = "several_frames"


@dataclass(frozen=True)
class Computed:
    """How many photos were computed, and their rate in photos a second."""

    photos: int = 0
    rate: float = 0.0


@dataclass(frozen=True)
class Run:
    """An extraction of the rows of `plan` into `config.out`."""

    config: ExtractConfig
    plan: Plan
    recipe: Recipe
    embedding: Embedding

    def whole(self, before: Computed | None = None) -> dict[str, Any]:
        """Computes what is left, seals the store, and returns the content of result.json.

        `before` is what the drivers of all parts have computed. Raises InUse if another driver writes the store.
        """
        out, before = self.config.out, before or Computed()
        with self._opened(out) as output:
            parts.require_none_running(out)
            found = self._found()
            shard_log = resume.cleaned(out, found)
            new = self._compute(found, shard_log)
            parts.delete_logs(out)
            result = _counts(out, len(self.plan.manifest), shard_log.facts)
            result |= {"computed": before.photos + new.photos, "dropped": found.dropped}
            result |= {"images_per_second": round(before.rate + new.rate, 2)}
            return output.finish(result, finished_shards.sealed(shard_log.facts))

    def part(self) -> dict[str, Any]:
        """Computes the shards of `--part`. Then, if no part is left, does what `whole` does.

        Else returns the counts of this part, and `parts_left`. Raises InUse if another driver writes the part or the
        store.
        """
        own = parts.folder(self.config)
        with self._opened(own) as output, parts.writing(self.config) as claims:
            found = self._found()
            shard_log = ShardLog(own, found.kept)
            # Other shards may hold rows of other parts, so the last driver looks after them. But a shard of this part
            # that kept its error rows would then count more than the new shard of photos that were tried again.
            changed = {name: rows for name, rows in found.changed.items() if name in self.plan.own}
            resume.remove(self.config.out, changed, shard_log, claims)
            before = set(shard_log.facts)
            new = self._compute(found, shard_log)
            images = int(self.plan.asked.sum())
            errors = found.errors + sum(
                facts["errors"] for name, facts in shard_log.facts.items() if name not in before
            )
            result = {"images": images, "ok": images - errors, "errors": errors, "computed": new.photos}
            output.finish(result := result | {"images_per_second": round(new.rate, 2)})
        left = parts.left(self.config)
        whole = Run(
            replace(self.config, part=None, retry_failed=False),
            replace(self.plan, part=(1, 1)),
            self.recipe,
            self.embedding,
        )
        if not left:
            left = self.plan.parts_left(whole._found().done)  # there are some if the manifest has grown
        if left:
            log.info("%r is finished once --part %s is done, too", self.config.out, ", ".join(left))
            return result | {"parts_left": len(left)}
        try:
            return whole.whole(Computed(*parts.computed(self.config)))
        except InUse as error:
            log.info("another driver finishes it: %s", error)
            return result | {"parts_left": 0}

    def _opened(self, folder: str) -> contextlib.AbstractContextManager[output_folder.Output]:
        config = self.config
        inputs = {"manifest": config.manifest, "model": config.model, "whitening": config.whitening}
        return output_folder.opened(folder, "extract", config, inputs, self.embedding.as_json())

    def _found(self) -> Found:
        out = self.config.out
        with progress.step(f"reading what {out!r} holds"):
            return resume.found(out, self.embedding, self.plan, parts.logged(out), self.config.retry_failed)

    def _compute(self, found: Found, shard_log: ShardLog) -> Computed:
        """Computes the rows of the plan that are not `found`."""
        rows = self.plan.rows_of(self.plan.asked & ~found.done)
        log.info("%d photos, %d to do", self.plan.asked.sum(), rows.num_rows)
        if not rows.num_rows:
            return Computed()
        batches = self._batches(rows)
        extracted = progress.Progress("extracting", rows.num_rows, errors=True)

        def counted(batch: pa.Table) -> pa.Table:
            extracted.add(batch.num_rows, store.error_count(batch))
            return batch

        out = self.config.out
        # The generator is closed here, even after an error. If it were closed after Ray ended, it would start Ray
        # again.
        with Writer(out, self.embedding, shard_log) as writer, contextlib.closing(batches):
            write_all(map(counted, batches), rows, writer, repr(out))
        return Computed(rows.num_rows, rows.num_rows / extracted.seconds)

    def _batches(self, rows: pa.Table) -> Generator[pa.Table, None, None]:
        """Embeds the photos `rows` by Ray or, if the job has not connected to Ray, in this process."""
        config, image_size = self.config, self.recipe.source.spec.image_size
        if not ray.is_initialized():
            return own_process.run(rows, self.recipe, config.store, config.batch_size)
        from dim.extract import pipeline  # noqa: PLC0415  (other extractions need no Ray Data)

        machine = resources(config.workers, config.gpus_per_worker, config.batch_size, image_size, rows.num_rows)
        log.info("starting %d network actor%s", machine.workers, "" if machine.workers == 1 else "s")
        return pipeline.run(rows, self.recipe, config.store, machine)


def _counts(out: str, images: int, shards: dict[str, Facts]) -> dict[str, Any]:
    """The counts of the finished store `out`, from the facts of its shards, for result.json.

    Raises RuntimeError if the shards don't have as many rows as there are images.
    """
    rows, errors, several = (sum(facts[fact] for facts in shards.values()) for fact in ("rows", "errors", SEVERAL))
    if rows != images:
        raise RuntimeError(f"the shards of {out!r} have {rows} rows, not {images}")
    if errors:
        names = sorted(name for name, facts in shards.items() if facts["errors"])
        units = [names[start : start + _SHARDS_A_TASK] for start in range(0, len(names), _SHARDS_A_TASK)]
        reasons = sum(
            (counts for _, counts in tasks.spread(_reasons, units, (files.absolute(out),), light=True)), Counter()
        )
        said = count_reasons(chain.from_iterable(repeat(*one) for one in sorted(reasons.items())))
        log.warning("photos that could not be read: %d (%s); each has an error row", errors, said)
    if several:
        log.info("photos whose files hold several frames or pages; the first of each is used: %d", several)
    return {"images": images, "ok": images - errors, "errors": errors, SEVERAL: several}


def _reasons(names: list[str], out: str) -> Counter[str]:
    """Counts the reasons of the error rows in the shards `names`."""
    found: Counter[str] = Counter()
    for name in names:
        table = store.read_shard(out, name, ["status", "error"])
        failed = table["error"].filter(pc.equal(table["status"], store.ERROR)).fill_null("unknown reason")
        found.update(failed.to_pylist())
    return found
