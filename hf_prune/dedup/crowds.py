"""Near-copies within crowds: texts of which more share a band than can be compared all with all.

Boilerplate makes crowds: thousands of texts, alike by half or more, and some of them near-copies. They are put in the
order of their minima again and again, each time by another sequence of them, and each text is compared with its
neighbours: most texts agree with the crowd in most minima, and it is the others that bring near-copies together.

How many are missed. Of all minima two texts differ in a share 1 - J, and agree in a share c in one that sets them
apart from the crowd: what they alone have in common, over all they have. In one order they meet if such a one comes
first: with the chance c / (c + 1 - J) in a crowd behind one boilerplate. J = .9 in a crowd of .74 has c = .09, hence
a chance of .48; that none of `ORDERS` shows them, or no one of `MINIMA` sets them apart, is below 1e-10. That is so for
crowds of any size, and below what the bands miss unless J is within .03 of the crowd. In a crowd without a
boilerplate, where any two texts are alike by J0 for reasons of their own, the minima must agree until `GROUP` texts
are left: the chance is J**d in an order, d = log(n / 32) / log(1 / J0), and grows small with n. Time grows with the
number of texts, times the logarithm of the largest crowd at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_prune.data import identity

ORDERS = 64
MINIMA = 256
DEPTH = 64  # minima of an order that are looked at
GROUP = 32  # texts of one group that are held against each other
BEYOND = 4  # neighbours a text is held against, of its group or not
PROPOSED = 4  # pairs of a text and an order that are measured
TRIES = 64, 4  # measured in vain, with others of a group and with any, until pairs have to look more alike
NEAREST = 2  # texts that look nearest to each are measured in the end
BLOCK = 1 << 15  # texts at a time; a larger crowd is one block

Columns = Callable[[NDArray[np.int64]], NDArray[np.uint32]]
Weigh = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]


def sequence(order: int, count: int) -> NDArray[np.int64]:
    """Which of `count` minima an order looks at, one after the other: (min(count, DEPTH),) indices."""
    drawn = identity.seeded(np.arange(count, dtype=np.uint64), order)
    return np.argsort(drawn, kind="stable")[:DEPTH]


def blocks(crowd: NDArray[np.int64], members: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Any]]:
    """Crowds, some at a time.

    Args:
        crowd: (m,) number of each text's crowd.
        members: (n,) the texts that are in one, ascending.

    Yields:
        Members crowd by crowd, and the edges between crowds.

    >>> [(m.tolist(), e.tolist()) for m, e in blocks(np.array([0, 1, 0, 3, 1]), np.array([0, 1, 2, 4]))]
    [([0, 2, 1, 4], [0, 2, 4])]
    """
    members = members[np.argsort(crowd[members], kind="stable")]
    edges = np.append(np.flatnonzero(np.diff(crowd[members], prepend=-1)), len(members))
    first = 0
    while first < len(edges) - 1:
        last = max(first + 1, int(np.searchsorted(edges, edges[first] + BLOCK, "right")) - 1)
        yield members[edges[first] : edges[last]], edges[first : last + 1] - edges[first]
        first = last


def bars(accept: float, count: int) -> NDArray[np.int64]:
    """Largest distance of the sketches of likely near-copies, by how much speaks for them.

    Args:
        accept: smallest similarity of near-copies.
        count: number of minima, and of bits of a sketch.

    Returns:
        (3,) numbers of bits: for texts of one group, for any others, and where many were measured in vain.

    With one of `count` bits for each minimum a bit differs with the chance (1 - J) / 2. For texts of one group the bar
    is three standard deviations above the mean of pairs at `accept`, for any others it is the mean, and two deviations
    below where many were measured in vain.

    >>> bars(0.8, 256).tolist()
    [40, 26, 16]
    """
    chance = min(1.0, max(0.0, (1 - accept) / 2))
    mean, deviation = count * chance, (count * chance * (1 - chance)) ** 0.5
    return np.rint([mean + 3 * deviation, mean, mean - 2 * deviation]).astype(np.int64)


def search(
    members: NDArray[np.int64],
    edges: NDArray[np.int64],
    columns: NDArray[np.uint32],
    accept: float,
    parent: NDArray[np.int64],
    weigh: Weigh,
) -> None:
    """Measure the likely near-copies among the texts of some crowds.

    Args:
        members: (n,) the texts, crowd by crowd.
        edges: (c + 1,) where each crowd begins in `members`, and n behind them.
        columns: (k, n) their minima.
        accept: smallest similarity of near-copies.
        parent: forest of all texts: pairs within one of its trees are not measured, but for those that look nearest.
        weigh: measures pairs of texts, unites near-copies in the forest, and gives which pairs are.
    """
    from hf_prune.dedup import _crowd_kernels as kernels

    n, k = len(members), len(columns)
    bits = np.empty((n, -(-k // 64)), np.uint64)
    kernels.sketch(columns, bits)
    order, leaf, tries = np.empty(n, np.int64), np.empty(n, np.int64), np.tile(np.array(TRIES, np.int32), (n, 1))
    nearest, distance = np.full((n, NEAREST), -1, np.int32), np.full((n, NEAREST), k + 1, np.int32)
    left, right = np.empty(PROPOSED * n, np.int64), np.empty(PROPOSED * n, np.int64)
    kinds, limits = np.empty(PROPOSED * n, np.int64), bars(accept, k)
    for turn in range(ORDERS):
        kernels.arrange(columns, sequence(turn, k), edges, GROUP, order, leaf)
        filled = kernels.likely(
            order, leaf, edges, bits, members, parent, tries, limits, GROUP, BEYOND, nearest, distance, left, right,
            kinds,
        )  # fmt: skip
        pair = left[:filled], right[:filled]
        kernels.spend(*pair, kinds, weigh(members[pair[0]], members[pair[1]]), tries)
    rows, place = np.nonzero(nearest >= 0)
    others = nearest[rows, place].astype(np.int64)
    pairs = np.unique(np.minimum(rows, others) * n + np.maximum(rows, others))
    weigh(members[pairs // n], members[pairs % n])
