"""Connected components of pairs: union-find with the lowest node as root, and an optional cap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Forest:
    """Components of n nodes that grow as edges are added; the lowest node of each is its root.

    Attributes:
        parent: (n,) a node of the same component that is nearer to its root; the root's own number for a root.
        size: (n,) number of nodes of the component, at its root.

    >>> forest = Forest(6)
    >>> forest.add(np.array([4, 1, 3]), np.array([5, 3, 4]))
    0
    >>> forest.roots().tolist()
    [0, 1, 2, 1, 1, 1]
    """

    def __init__(self, n: int) -> None:
        self.parent = np.arange(n, dtype=np.int64)
        self.size = np.ones(n, np.int64)

    def add(
        self, left: NDArray[np.int64], right: NDArray[np.int64], accepted: NDArray[np.bool_] | None = None, cap: int = 0
    ) -> int:
        """Unite the ends of edges, in their order.

        Args:
            left: (p,) one end of each.
            right: (p,) the other.
            accepted: (p,) which of them count; None for all.
            cap: largest number of nodes of a component; edges that would make more are refused. 0 for no cap.

        Returns:
            How many were refused.
        """
        from hf_prune.dedup import _link_kernels

        accepted = np.ones(len(left), bool) if accepted is None else accepted
        return int(_link_kernels.join(left, right, accepted, self.parent, self.size, cap))

    def roots(self) -> NDArray[np.int64]:
        """The lowest node of each node's component, (n,)."""
        return flattened(self.parent)


def flattened(parent: NDArray[np.int64]) -> NDArray[np.int64]:
    """The root of each node of a forest, (n,).

    >>> flattened(np.array([0, 0, 1, 3, 2])).tolist()
    [0, 0, 0, 3, 0]
    """
    while True:
        above = parent[parent]
        if np.array_equal(above, parent):
            return parent
        parent = above


def capped(
    n: int, left: NDArray[np.int64], right: NDArray[np.int64], weight: NDArray[np.float64], cap: int
) -> tuple[NDArray[np.int64], int]:
    """Components of at most `cap` nodes: edges unite from the heaviest down, and none that would make more.

    Equal weights go by the nodes, so that neither the order in which edges were found nor their direction matters.

    Args:
        n: number of nodes.
        left: (p,) one end of each edge.
        right: (p,) the other.
        weight: (p,) weights of the edges.
        cap: largest number of nodes of a component.

    Returns:
        The roots (n,), and how many edges were refused.

    >>> left, right = np.array([0, 1, 2]), np.array([1, 2, 3])
    >>> capped(4, left, right, np.array([0.8, 0.9, 0.8]), cap=2)[0].tolist()
    [0, 1, 1, 3]
    """
    low, high = np.minimum(left, right), np.maximum(left, right)
    order = np.lexsort((high, low, -weight))
    forest = Forest(n)
    refused = forest.add(low[order], high[order], cap=cap)
    return forest.roots(), refused
