"""Compiled steps of `k_center`: squared distances in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hf_prune._compiled import kernel


@kernel
def squared_distance(x: NDArray[np.floating], i: int, y: NDArray[np.floating], j: int) -> float:
    """Squared Euclidean distance of row i of x to row j of y: sums of differences, so that copies are 0 apart."""
    d = x.shape[1]
    whole = d - d % 4
    s0 = s1 = s2 = s3 = 0.0
    for p in range(0, whole, 4):
        a = np.float64(x[i, p]) - np.float64(y[j, p])
        b = np.float64(x[i, p + 1]) - np.float64(y[j, p + 1])
        c = np.float64(x[i, p + 2]) - np.float64(y[j, p + 2])
        e = np.float64(x[i, p + 3]) - np.float64(y[j, p + 3])
        s0 += a * a
        s1 += b * b
        s2 += c * c
        s3 += e * e
    for p in range(whole, d):
        a = np.float64(x[i, p]) - np.float64(y[j, p])
        s0 += a * a
    return (s0 + s1) + (s2 + s3)


@kernel
def lower_to(x: NDArray[np.floating], row: int, nearest: NDArray[np.float64]) -> None:
    """Lower squared distances `nearest` (n,) of the rows of x by those to one of them."""
    for i in range(len(x)):
        nearest[i] = min(nearest[i], squared_distance(x, i, x, row))


@kernel
def lower_by(
    x: NDArray[np.floating],
    centres: NDArray[np.floating],
    product: NDArray[np.float32],
    squares: NDArray[np.float64],
    centre_squares: NDArray[np.float64],
    error: float,
    nearest: NDArray[np.float64],
) -> None:
    """Lower squared distances `nearest` (n,) by those to new centres; only pairs that may do so are told.

    Args:
        x: (n, d) rows.
        centres: (m, d).
        product: (n, m) their float32 products.
        squares, centre_squares: (n,), (m,) squared lengths.
        error: of a product, as a share of the two lengths.
        nearest: written.
    """
    n, m = product.shape
    for i in range(n):
        length = np.sqrt(squares[i])
        for j in range(m):
            slack = 2 * error * length * np.sqrt(centre_squares[j])
            if squares[i] + centre_squares[j] - 2.0 * product[i, j] - slack < nearest[i]:
                nearest[i] = min(nearest[i], squared_distance(x, i, centres, j))
