"""Connected components of pairs: union-find with the least node as root, an optional cap, chains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def components(n: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The least node of each node's component, in plain Python: the definition.

    >>> components(6, [(4, 5), (1, 3), (3, 4)])
    [0, 1, 2, 1, 1, 1]
    """
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i, j in edges:
        a, b = root(i), root(j)
        parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(n)]


class Forest:
    """Components of n nodes that grow as edges are added; the least node of each is its root.

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
        """Unite the ends of edges (p,), in their order; those that would make more than `cap` nodes are refused.

        Returns:
            How many were refused.
        """
        from hf_prune.dedup import _link_kernels

        accepted = np.ones(len(left), bool) if accepted is None else accepted
        return int(_link_kernels.join(left, right, accepted, self.parent, self.size, cap))

    def roots(self) -> NDArray[np.int64]:
        """The least node of each node's component, (n,)."""
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

    Equal weights go by the nodes, so that the order in which edges were found does not matter.

    Returns:
        The roots (n,), and how many edges were refused.

    >>> left, right = np.array([0, 1, 2]), np.array([1, 2, 3])
    >>> capped(4, left, right, np.array([0.8, 0.9, 0.8]), cap=2)[0].tolist()
    [0, 1, 1, 3]
    """
    order = np.lexsort((right, left, -weight))
    forest = Forest(n)
    refused = forest.add(left[order], right[order], cap=cap)
    return forest.roots(), refused
