"""Labels for photos that have none (`--labels groups`): groups of similar photos, found with the current network.

Training on the clusters of the network's own descriptors, which are found anew as it learns, is that of Caron et al.
(Deep Clustering for Unsupervised Learning of Visual Features, arXiv:1807.05520). The groups are those of `dim.group`.
They leave out what is in doubt: a photo that is more similar to a photo outside its group than to the group has no
label, and photos of two groups that are as similar as the photos of one group are no negatives of each other.
"""

from dataclasses import dataclass

import numpy as np

from dim.app.progress import step
from dim.group import corrections, neighbours, threshold
from dim.group.components import Grouper
from dim.group.config import NEIGHBOURS
from dim.search import exact
from dim.search.database import Exact
from dim.train.embed import Embedded


@dataclass(frozen=True)
class PseudoLabels:
    """The labels of some photos.

    `table` has an image id and its label in each row, str (n, 2); a photo that is alone has its own id. Photos that are
    in doubt have no row. Photos with different labels are negatives of each other only if their cosine is at most
    `most_similar`, the median of the mean similarity of a photo to its group.
    """

    table: np.ndarray
    most_similar: float


@step("grouping the photos")
def found_in(embedded: Embedded, image_ids: np.ndarray, most_rows: int) -> PseudoLabels:
    """Groups the photos of `embedded`, with the ids `image_ids` (n,). A process holds at most `most_rows` rows."""
    database = Exact(embedded.parts, exact.tie_order_of(image_ids))
    lists = neighbours.by_comparison(database, neighbours.unknown(len(image_ids), min(NEIGHBOURS, len(image_ids) - 1)))
    grouper = Grouper(database, lists, 0.0, corrections.none(), most_rows)
    least = threshold.curve(grouper).best
    found = grouper.grouped(least)
    several = found.sizes > 1
    sure = ~several | (threshold.silhouettes(found, lists, np.arange(len(image_ids))) >= 0)
    table = np.stack([image_ids, image_ids[found.groups]], axis=1).astype(np.str_)
    return PseudoLabels(table[sure], float(np.median(found.within[several & sure])))
