"""The region of a photo that is most similar to a query: approximate max-pooling localisation (AML).

Source: Tolias, Sicre and Jégou, "Particular object retrieval with integral max-pooling of CNN activations", 1511.05879,
section 4. From an integral image, the sums over any rectangle take four look-ups. The search tries a coarse grid of
rectangles, then moves the sides of the best one as long as the similarity rises.

A box is (top, left, bottom, right) in cells of the activation map. The row `bottom` and the column `right` are outside.
"""

import numpy as np

from dim.localise.head import NetworkHead

TICKS = 7  # intervals, at most, into which the coarse grid divides each side of the map
ROUNDS = 8  # moves of a side, at most
_LEAST = 1e-6  # as in GeM


class Regions:
    """The descriptors of the regions of one activation map (H, W, K); H and W are at least 1."""

    def __init__(self, activations: np.ndarray, head: NetworkHead) -> None:
        maps = np.maximum(activations, _LEAST).astype(np.float64)
        self.height, self.width, _ = maps.shape
        # Each channel is divided by its largest value, so that no power leaves the range of numbers.
        largest = maps.max(axis=(0, 1))
        self._head, self._largest = head, largest.astype(np.float32)
        sums = np.power(maps / largest, head.power).cumsum(axis=0).cumsum(axis=1)
        self._integral = np.pad(sums, ((1, 0), (1, 0), (0, 0)))

    @property
    def whole(self) -> np.ndarray:
        """The box of the whole map, (1, 4)."""
        return np.array([[0, 0, self.height, self.width]])

    def descriptors(self, boxes: np.ndarray) -> np.ndarray:
        """Returns the descriptors of `boxes`, int (B, 4): float32 (B, D)."""
        top, left, bottom, right = boxes.T
        sums = self._integral[bottom, right] - self._integral[top, right]
        sums += self._integral[top, left] - self._integral[bottom, left]
        shares = np.maximum(sums, 0).astype(np.float32)
        return self._head.descriptors(shares, self._largest)

    def most_similar(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Finds the box that is most similar to each query.

        `queries` (Q, S, D) has S descriptors of each query, such as those of several sizes; the most similar of them
        counts. Returns boxes, int64 (Q, 4), and their cosines, float64 (Q,).
        """
        grid = boxes_between(_ticks(self.height), _ticks(self.width))
        cosines = _cosines(self.descriptors(grid), queries)
        boxes, best = grid[cosines.argmax(axis=1)], cosines.max(axis=1)
        moves = np.concatenate([by * np.eye(4, dtype=np.int64) for by in self._steps()])
        moving = np.arange(len(boxes))  # the queries whose box may still get better
        for _ in range(ROUNDS):
            moved = np.clip(boxes[moving, None] + moves, 0, [self.height, self.width] * 2)
            distinct, place = np.unique(moved.reshape(-1, 4), axis=0, return_inverse=True)
            filled = (distinct[:, 0] < distinct[:, 2]) & (distinct[:, 1] < distinct[:, 3])
            of_distinct = np.full((len(moving), len(distinct)), -np.inf)
            of_distinct[:, filled] = _cosines(self.descriptors(distinct[filled]), queries[moving])
            cosines = np.take_along_axis(of_distinct, place.reshape(len(moving), -1), axis=1)
            better = np.flatnonzero(cosines.max(axis=1) > best[moving])
            boxes[moving[better]] = moved[better, cosines[better].argmax(axis=1)]
            best[moving[better]] = cosines[better].max(axis=1)
            moving = moving[better]
            if not len(moving):
                break
        return boxes, best

    def _steps(self) -> list[int]:
        """By how much a side moves: up to the distance of the grid's lines."""
        most = max(1, -(-max(self.height, self.width) // TICKS) - 1)
        return [by for by in range(-most, most + 1) if by]


def boxes_between(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns all boxes with their sides at `rows` and `columns`, both ascending: int64 (B, 4)."""
    top, bottom = (rows[end] for end in np.triu_indices(len(rows), 1))
    left, right = (columns[end] for end in np.triu_indices(len(columns), 1))
    down, across = np.indices((len(top), len(left))).reshape(2, -1)
    return np.stack([top[down], left[across], bottom[down], right[across]], axis=1)


def _ticks(length: int) -> np.ndarray:
    return np.unique(np.linspace(0, length, min(length, TICKS) + 1).round().astype(np.int64))


def _cosines(descriptors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The cosines of `descriptors` (B, D) and the most similar of each query's descriptors: float64 (Q, B)."""
    count, sizes, dimension = queries.shape
    products = (queries.reshape(-1, dimension) @ descriptors.T).reshape(count, sizes, len(descriptors))
    found: np.ndarray = products.max(axis=1).astype(np.float64)
    return found
