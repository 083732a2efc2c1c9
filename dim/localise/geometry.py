"""The geometric check: which points of two photos match, and which similarity transform maps the one to the other.

A point is a cell of the activation map, with its vector of activations. Two points match if each is the other's nearest
(mutual nearest neighbours). Every two matches propose a transform: a rotation, a scale and a shift. The one that the
most matches agree with wins; these are its inliers. This is RANSAC (Fischler and Bolles, 1981) with all pairs of the
best matches in place of random ones, so the result depends on nothing but the two photos. The agreement falls with the
square of the error (MSAC: Torr and Zisserman, 2000).

Some matches agree by chance. Whether there are more is judged a contrario (Moisan and Stival, "A probabilistic
criterion to detect rigid point matches between two images", IJCV 2004): if matches lay anywhere in the photo, each
would agree with a transform with a probability that follows from the area around a point, and the expected number of
transforms with so many inliers would be tiny.

Places are complex numbers, x + iy in shares of the photo's longer side, so that a scale says nothing about resolutions.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from dim.localise.head import normalised

MOST_POINTS = 256  # of a photo: those with the strongest activations
MOST_MATCHES = 64  # of two photos: the most similar ones
FEWEST_INLIERS = 3  # any two matches have a transform; a third one has to agree
REACH = 1.5  # cells; a match agrees if the transform puts the query's point so near to the photo's
LARGEST_SCALE = 4.0  # of the transform, and the smallest is 1 / LARGEST_SCALE
SHARPEST_TURN = np.pi / 4  # activations change if a photo is turned further


@dataclass(frozen=True)
class Points:
    """The points of a photo: places, complex (P,), and vectors of length 1, (P, K).

    `cell` is the longer side of a cell, in the same unit, and the map has `cells` of them.
    """

    places: np.ndarray
    vectors: np.ndarray
    cell: float
    cells: int


@dataclass(frozen=True)
class Transform:
    """The similarity transform z → turn · z + shift, with which `inliers` matches agree.

    `meaning` is −log₁₀ of the number of transforms with so many inliers that are expected by chance.
    """

    turn: complex
    shift: complex
    inliers: int
    meaning: float


NO_TRANSFORM = Transform(0j, 0j, 0, 0.0)


def points_of(activations: np.ndarray, width: float, height: float) -> Points:
    """Makes points of the activations (H, W, K) of a photo; `width` and `height` are in the unit of places."""
    rows, columns, channels = activations.shape
    vectors = activations.reshape(-1, channels).astype(np.float32)
    strongest = np.sort(np.argsort(-np.linalg.norm(vectors, axis=1), kind="stable")[:MOST_POINTS])
    down, across = np.divmod(strongest, columns)
    places = (across + 0.5) * width / columns + 1j * (down + 0.5) * height / rows
    return Points(places, normalised(vectors[strongest]), max(width / columns, height / rows), rows * columns)


def mutual_matches(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Finds the rows of `one` (P, K) and `other` (R, K) that are each other's nearest by their products.

    Returns pairs of rows, int64 (M, 2): at most `MOST_MATCHES`, the most similar first.
    """
    similarities = one @ other.T
    nearest, back = similarities.argmax(axis=1), similarities.argmax(axis=0)
    rows = np.flatnonzero(back[nearest] == np.arange(len(one)))
    order = np.argsort(-similarities[rows, nearest[rows]], kind="stable")[:MOST_MATCHES]
    return np.stack([rows, nearest[rows]], axis=1)[order]


def transform_between(places: np.ndarray, vectors: np.ndarray, photo: Points) -> Transform:
    """Finds the transform that puts the most of a query's points to where their matches are in `photo`.

    The query's points have `places`, complex (P,), and `vectors` (P, K). Returns `NO_TRANSFORM` if there is none.
    """
    matches = mutual_matches(vectors, photo.vectors)
    begin, end = places[matches[:, 0]], photo.places[matches[:, 1]]
    first, second = np.triu_indices(len(matches), 1)
    apart = begin[second] - begin[first]  # never 0, because a point is in one match only
    turn = (end[second] - end[first]) / apart
    scale = np.abs(turn)
    possible = (scale <= LARGEST_SCALE) & (scale >= 1 / LARGEST_SCALE) & (np.abs(np.angle(turn)) <= SHARPEST_TURN)
    turn, first = turn[possible], first[possible]
    if not len(turn):
        return NO_TRANSFORM
    shift = end[first] - turn * begin[first]
    errors = np.abs(turn[:, None] * begin + shift[:, None] - end) / (REACH * photo.cell)
    best = int(np.maximum(1 - errors**2, 0).sum(axis=1).argmax())
    inliers = int((errors[best] < 1).sum())
    if inliers < FEWEST_INLIERS:
        return NO_TRANSFORM
    return Transform(complex(turn[best]), complex(shift[best]), inliers, _meaning(inliers, len(matches), photo.cells))


def _meaning(inliers: int, matches: int, cells: int) -> float:
    """See `Transform`. A transform follows from two matches, which agree with it by themselves."""
    probability = min(1.0, np.pi * REACH**2 / cells)
    by_chance = binom.logsf(inliers - 3, matches - 2, probability)  # of at least inliers − 2 among the others
    return float(-(by_chance + np.log(matches * (matches - 1) / 2)) / np.log(10))


def outline(transform: Transform, width: float, height: float) -> tuple[float, float, float, float]:
    """The smallest box (x1, y1, x2, y2) that holds what `transform` makes of a whole query of `width` × `height`."""
    corners = np.array([0, width, 1j * height, width + 1j * height])
    moved = transform.turn * corners + transform.shift
    return float(moved.real.min()), float(moved.imag.min()), float(moved.real.max()), float(moved.imag.max())
