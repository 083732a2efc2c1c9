"""The methods that `--rerank` can name. Each describes a query, and compares a photo with the queries that list it.

A description is a dict of arrays. Sizes, boxes and places are in shares of a photo's longer side. If a manifest's box
crops a photo, the photo is the part inside.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dim.localise import config, geometry
from dim.localise.head import NetworkHead
from dim.localise.regions import Regions

Description = dict[str, np.ndarray]

# A query is described at these shares of its size: an object that fills the query may be small in a photo.
SIZES = (1.0, 0.7, 0.5)
# Cells by which a box is larger than the most similar region. The cells at the edge of an object see what is beside it,
# too, so the most similar region is smaller than the object (tests/benchmarks/collages.py, split val).
MARGIN = 1.5
# The score of the geometric check is the cosine, and so much for each inlier: chosen on split val.
PER_INLIER = 0.03
# Below, photos mostly show different objects (split val, at 224 and 448 pixels), so the answer is that none matches.
LEAST_MEANING = 5.0


@dataclass(frozen=True)
class Seen:
    """A photo as the network sees it: its size, its activation maps (H, W, K) at some sizes, and the network's head."""

    width: float
    height: float
    maps: tuple[np.ndarray, ...]
    head: NetworkHead


@dataclass(frozen=True)
class Matches:
    """What a photo has of each of Q queries.

    `scores` (Q,) replace the cosines of the search, or are added to them (`Reranking.added`). `boxes` (Q, 4) are (x1,
    y1, x2, y2), NaN where no region matches. `inliers` (Q,) are those of the transform, 0 if the method has none.
    """

    scores: np.ndarray
    boxes: np.ndarray
    inliers: np.ndarray


def describe_regions(query: Seen) -> Description:
    """The descriptors of a query at several sizes, (S, D)."""
    regions = [Regions(maps, query.head) for maps in query.maps]
    return {"descriptors": np.concatenate([one.descriptors(one.whole) for one in regions])}


def match_regions(photo: Seen, queries: Sequence[Description]) -> Matches:
    """The most similar region for each query; the score is its cosine."""
    regions = Regions(photo.maps[0], photo.head)
    boxes, cosines = regions.most_similar(np.stack([query["descriptors"] for query in queries]))
    grown = boxes + MARGIN * np.array([-1, -1, 1, 1])
    sides = np.clip(grown, 0, [regions.height, regions.width] * 2)[:, [1, 0, 3, 2]]
    cell = np.array([photo.width / regions.width, photo.height / regions.height] * 2)
    return Matches(cosines, sides * cell, np.zeros(len(queries), np.int64))


def describe_points(query: Seen) -> Description:
    """The size of a query, and its points at the sizes 0, 1, …: places as "places 0", vectors as "vectors 0"."""
    found = {"size": np.array([query.width, query.height])}
    for number, maps in enumerate(query.maps):
        points = geometry.points_of(maps, query.width, query.height)
        found[f"places {number}"], found[f"vectors {number}"] = points.places, points.vectors.astype(np.float16)
    return found


def match_points(photo: Seen, queries: Sequence[Description]) -> Matches:
    """The inliers of each query at the size with the most meaning.

    The box is what the transform makes of the query, as far as it is in the photo.
    """
    points = geometry.points_of(photo.maps[0], photo.width, photo.height)
    inliers, boxes = np.zeros(len(queries), np.int64), np.full((len(queries), 4), np.nan)
    for number, query in enumerate(queries):
        asked = ((query[f"places {size}"], query[f"vectors {size}"].astype(np.float32)) for size in range(len(SIZES)))
        found = max((geometry.transform_between(*one, points) for one in asked), key=lambda one: one.meaning)
        inliers[number] = found.inliers
        if found.meaning >= LEAST_MEANING:
            boxes[number] = np.clip(geometry.outline(found, *query["size"]), 0, [photo.width, photo.height] * 2)
    return Matches(PER_INLIER * inliers, boxes, inliers)


@dataclass(frozen=True)
class Reranking:
    """A method. Its scores are added to the cosines of the search if `added`, else they replace them.

    A description has at most `vectors` vectors.
    """

    describe: Callable[[Seen], Description]
    match: Callable[[Seen, Sequence[Description]], Matches]
    vectors: int
    added: bool = False


METHODS: dict[config.Method, Reranking] = {
    "localise": Reranking(describe_regions, match_regions, len(SIZES)),
    "geometry": Reranking(describe_points, match_points, len(SIZES) * geometry.MOST_POINTS, added=True),
}
