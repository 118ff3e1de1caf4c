"""Compiled steps of `k_center`: squared distances in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hf_prune.numerics.compiled import kernel, sums

TINY = 2.0**-100  # below it products of float32 vanish


@sums
def squared_distance(x: NDArray[np.floating], i: int, y: NDArray[np.floating], j: int) -> float:
    """Squared Euclidean distance of row i of x to row j of y: sums of differences, so that copies are 0 apart."""
    a, b = x[i], y[j]
    total = 0.0
    for p in range(len(a)):
        difference = np.float64(a[p]) - np.float64(b[p])
        total += difference * difference
    return total


@kernel
def lower_to(x: NDArray[np.floating], row: int, nearest: NDArray[np.float64]) -> None:
    """Lower squared distances `nearest` (n,) of the rows of x by those to one of them."""
    for i in range(len(x)):
        nearest[i] = min(nearest[i], squared_distance(x, i, x, row))


@kernel
def lower_by(
    x: NDArray[np.floating],
    centers: NDArray[np.floating],
    product: NDArray[np.float32],
    squares: NDArray[np.float64],
    center_squares: NDArray[np.float64],
    error: float,
    nearest: NDArray[np.float64],
) -> None:
    """Lower squared distances `nearest` (n,) by those to new centers, in float64 where a pair may do so.

    Args:
        x: (n, d) rows.
        centers: (m, d).
        product: (n, m) their float32 products.
        squares, center_squares: (n,), (m,) squared lengths.
        error: of a product, as a share of the two lengths.
        nearest: written.
    """
    n, m = product.shape
    for i in range(n):
        length = np.sqrt(squares[i])
        for j in range(m):
            slack = 2 * error * length * np.sqrt(center_squares[j]) + TINY
            if squares[i] + center_squares[j] - 2.0 * product[i, j] - slack < nearest[i]:
                nearest[i] = min(nearest[i], squared_distance(x, i, centers, j))
