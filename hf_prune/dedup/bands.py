"""Bands of minima: with what chance two texts share one, and the best split of a number of minima into them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_prune.data import identity


def band_probability(similarity: Any, bands: int, rows: int) -> Any:
    """Chance that two texts of this Jaccard similarity share at least one of `bands` bands of `rows` minima.

    >>> round(band_probability(0.8, bands=14, rows=8), 4)
    0.9235
    """
    return 1 - (1 - similarity**rows) ** bands


def optimal_bands(threshold: float, permutations: int, missed_weight: float = 0.5) -> tuple[int, int]:
    """Bands and rows, bands * rows <= permutations, with the least weighted area of errors.

    The areas are those under the curve of `band_probability` below the threshold (pairs proposed in vain) and over
    it above the threshold (pairs missed).

    Args:
        threshold: Jaccard similarity, in (0, 1].
        permutations: how many minima there are.
        missed_weight: of the missed; the others weigh 1 minus it.

    >>> optimal_bands(0.8, 128), optimal_bands(0.7, 128), optimal_bands(0.5, 128)
    ((9, 13), (14, 9), (25, 5))
    """
    nodes, weights = np.polynomial.legendre.leggauss(128)
    below, above = (nodes + 1) / 2 * threshold, threshold + (nodes + 1) / 2 * (1 - threshold)
    best, found = math.inf, (1, 1)
    for bands in range(1, permutations + 1):
        for rows in range(1, permutations // bands + 1):
            vain = threshold / 2 * float(weights @ band_probability(below, bands, rows))
            missed = (1 - threshold) / 2 * float(weights @ (1 - band_probability(above, bands, rows)))
            error = (1 - missed_weight) * vain + missed_weight * missed
            if error < best:
                best, found = error, (bands, rows)
    return found


def permutations(count: int, seed: int, first: int = 0) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Factors (odd) and terms of x -> a * x + b modulo 2**32, each (count,).

    Args:
        count: of permutations.
        seed: what they are drawn by.
        first: how many numbers to pass over, two a permutation, so as to have others than those.

    >>> [part.tolist() for part in permutations(1, seed=0, first=2)] != [part.tolist() for part in permutations(1, 0)]
    True
    """
    keys = np.arange(first, first + 2 * count, dtype=np.uint64)
    drawn = identity.seeded(keys, seed) >> np.uint64(32)
    return (drawn[:count] | np.uint64(1)).astype(np.uint32), drawn[count:].astype(np.uint32)


def minima(grams: NDArray[np.uint64], factors: NDArray[np.uint32], terms: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Minima (p,) of one set of n-gram hashes under p permutations, in NumPy: the definition."""
    x = (grams >> np.uint64(32)).astype(np.uint32)
    return np.asarray((factors[:, None] * x + terms[:, None]).min(axis=1, initial=0xFFFF_FFFF))
