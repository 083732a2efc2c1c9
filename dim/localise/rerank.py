"""Ranks the first photos of each list again, by what the photos themselves show (`--rerank`).

The queries are described in a first pass over their photos. In a second one, each photo that any list has among its
first is compared with the queries of these lists. Both are passes of the extraction pipeline, on all actors of the
cluster; for a few photos, this process does the work.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from dim.app import cluster
from dim.app.progress import Progress
from dim.data.decode import Box
from dim.extract import own_process, photo_files
from dim.extract.config import Extraction
from dim.extract.embedder import Recipe
from dim.extract.resources import of_own_process, resources
from dim.localise.config import Rerank
from dim.localise.methods import METHODS
from dim.localise.stages import Describe, Match, Shared

Photos = Callable[[np.ndarray], pa.Table]  # the columns path and box (see `Manifest.box_lists`) of given rows
_COPIES = 3  # of a description
_VALUES = ("score", "inliers", "x1", "y1", "x2", "y2")  # of a pair, in the tables of `Match`


@dataclass(frozen=True)
class Reranked:
    """A list: rows of the database, best first, and of each its score, and its cosine before.

    `boxes` (n, 4) are in pixels, NaN for photos without one, and `inliers` (n,) is 0 for them.
    """

    rows: np.ndarray
    scores: np.ndarray
    cosines: np.ndarray
    boxes: np.ndarray
    inliers: np.ndarray


def box_of(sides: np.ndarray) -> Box | None:
    """The box with the `sides` (4,) of `Reranked.boxes`, None if they are NaN."""
    x1, y1, x2, y2 = sides.tolist()
    return None if np.isnan(x1) else (x1, y1, x2, y2)


@dataclass(frozen=True)
class Reranker:
    """Ranks lists again by the method `how`, with the network `recipe` that made the descriptors.

    `queries` and `photos` give the photos of queries and of rows of the database. `config` sizes the actors.
    """

    how: Rerank
    recipe: Recipe
    queries: Photos
    photos: Photos
    config: Extraction

    @property
    def query_bytes(self) -> int:
        """The memory of a query that is ranked again, at most: its description, as it arrives and as it is sent on."""
        return _COPIES * 4 * self.recipe.source.spec.channels * METHODS[self.how.method].vectors

    def __call__(self, asked: np.ndarray, heads: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Reranked]:
        """Ranks the lists of the queries `asked` (Q,) again. `heads` has their first rows and cosines, best first.

        Photos after the first `how.first`, those that match no better than by their cosines, and lists of queries whose
        photo can't be read stay in their order.
        """
        firsts = [rows[: self.how.first] for rows, _ in heads]
        rows, places = np.unique(np.concatenate([np.zeros(0, np.int64), *firsts]), return_inverse=True)
        few = max(len(asked), len(rows)) <= own_process.FEW and self.config.workers is None
        with cluster.joined() if few else cluster.connected():
            matched = self._matched(asked, rows, np.repeat(np.arange(len(firsts)), list(map(len, firsts))), places)
        return [self._reranked(*head, found) for head, found in zip(heads, matched, strict=True)]

    def _matched(self, asked: np.ndarray, rows: np.ndarray, of: np.ndarray, places: np.ndarray) -> list[np.ndarray]:
        """Compares queries and photos. Returns for each query the values `_VALUES` of its first photos, (n, 6).

        Pair i is the query asked[of[i]] and the photo rows[places[i]], in the order of the lists. The values of a pair
        that can't be compared are NaN.
        """
        described = [None] * len(asked)
        for table in self._passed(Describe, self.queries(asked), len(asked), "queries"):
            for row in table.to_pylist():
                described[row["query"]] = row["description"]
        order = np.argsort(places, kind="stable")
        starts = np.searchsorted(places[order], np.arange(len(rows) + 1))
        lists = (pa.array(described, pa.large_binary()), starts, of[order])
        found = np.full((len(of), len(_VALUES)), np.nan)
        keys = of * len(rows) + places
        by_key = np.argsort(keys)
        for table in self._passed(Match, self.photos(rows), len(of), "pairs", *lists):
            wanted = table["query"].to_numpy() * len(rows) + table["photo"].to_numpy()
            pairs = by_key[np.searchsorted(keys, wanted, sorter=by_key)]
            found[pairs] = np.stack([table[name].to_numpy() for name in _VALUES], axis=1)
        return np.split(found, np.searchsorted(of, np.arange(1, len(asked))))

    def _passed(self, stage: type, photos: pa.Table, total: int, unit: str, *lists: Any) -> Iterator[pa.Table]:
        """Sends `photos` (path, box) through actors of the class `stage`, and yields what these make: `total` rows.

        Photos that can't be decoded have none.
        """
        size = photos.num_rows
        nothing, numbers = pa.array([""] * size, pa.string()), pa.array(map(str, range(size)), pa.string())
        columns = {"image_id": numbers, "content": nothing, "shard": nothing}
        rows = pa.table(columns | {name: photos[name] for name in ("path", "box")})
        boxes = {number: tuple(box) for number, box in enumerate(photos["box"].to_pylist()) if box}
        run = self._by_actors if ray.is_initialized() else self._in_this_process
        progress, left = Progress("matching", total, unit, errors=True), total
        for table in run(rows, stage, Shared(boxes, *lists)):
            yield table
            progress.add(table.num_rows)
            left -= table.num_rows
        if left:
            progress.add(left, left)

    def _by_actors(self, rows: pa.Table, stage: type, shared: Shared) -> Iterator[pa.Table]:
        from dim.extract import pipeline  # noqa: PLC0415  (a few photos need no Ray Data)

        cluster.require_shared(photo_files.one_of_each_folder(rows["path"]))
        config, size = self.config, self.recipe.source.spec.image_size
        machine = resources(config.workers, config.gpus_per_worker, config.batch_size, size, rows.num_rows)
        arguments = (self.how.method, self.recipe, machine, ray.put(shared))  # each node gets one copy
        dataset = pipeline.staged(rows, self.recipe, machine, stage, arguments)
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")

    def _in_this_process(self, rows: pa.Table, stage: type, shared: Shared) -> Iterator[pa.Table]:
        machine = of_own_process(self.config.batch_size, self.recipe.source.spec.image_size)
        actor = stage(self.how.method, self.recipe, machine, shared)
        for start in range(0, rows.num_rows, own_process.FEW):
            yield actor(own_process.decoded(rows.slice(start, own_process.FEW), self.recipe))

    def _reranked(self, rows: np.ndarray, cosines: np.ndarray, found: np.ndarray) -> Reranked:
        """Orders a list by what was `found` of its first photos, (n, 6)."""
        first, added = len(found), METHODS[self.how.method].added
        values = np.full((len(rows), len(_VALUES)), np.nan)
        values[:first] = found
        matches, scores = values[:, 0], cosines.astype(np.float64)
        known = np.isfinite(matches)
        scores[known] = scores[known] + matches[known] if added else matches[known]
        # The photos that were looked at stay before the others, whose cosines may be above the score of a region.
        scores[:first] = np.maximum(scores[:first], cosines[first : first + 1].max(initial=-np.inf))
        order = np.concatenate([np.argsort(-scores[:first], kind="stable"), np.arange(first, len(rows))])
        inliers = np.nan_to_num(values[:, 1]).astype(np.int64)
        return Reranked(rows[order], scores[order], cosines[order], values[order, 2:], inliers[order])
