"""Connected components of edges that arrive in blocks: a union-find in NumPy arrays.

It holds 8 bytes for each node and no edge. Where the nodes don't fit into one machine, each task can join its own edges
and send on only one edge per node, the edge to its `roots`. Joining these edges gives the components of all.
"""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


class UnionFind:
    """The components of `size` nodes, of which each is alone at first.

    A component is named by its smallest node, so its name doesn't depend on the order of the edges. Source: Tarjan,
    "Efficiency of a good but not linear set union algorithm" (1975). Here the edges of a block are joined at once.
    """

    def __init__(self, size: int) -> None:
        self._parents = np.arange(size)

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Joins the components of one[e] and other[e] for each edge e."""
        ends = np.stack([self._found(one), self._found(other)])
        nodes, places = np.unique(ends, return_inverse=True)
        left, right = places.reshape(ends.shape)
        graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(len(nodes), len(nodes)))
        count, component = connected_components(graph, directed=False)
        smallest = np.full(count, len(self._parents))
        np.minimum.at(smallest, component, nodes)
        self._parents[nodes] = smallest[component]

    def roots(self) -> np.ndarray:
        """The smallest node of each node's component, int64 (N,)."""
        return self._found(np.arange(len(self._parents)))

    def _found(self, nodes: np.ndarray) -> np.ndarray:
        roots: np.ndarray = self._parents[nodes]
        while ((above := self._parents[roots]) != roots).any():
            roots = above
        self._parents[nodes] = roots  # shortens the way for the next search
        return roots
