"""Compiled halves of `earlier`: what a tile of rough cosines leaves to be computed in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hf_prune.numerics.compiled import kernel, sums

SEGMENT = 32  # columns whose maximum is kept, so that a second look passes most of them by


@sums
def product(x: NDArray[np.floating], one: int, two: int) -> float:
    """Product of two rows of x, in float64."""
    a, b = x[one], x[two]
    total = 0.0
    for p in range(len(a)):
        total += np.float64(a[p]) * np.float64(b[p])
    return total


@kernel
def scale(x: NDArray[np.floating], members: NDArray[np.int64], inverse: NDArray[np.float64]) -> None:
    """One over the lengths of the rows that are `members` (n,), written to `inverse`."""
    for i in range(len(members)):
        inverse[i] = 1.0 / np.sqrt(product(x, members[i], members[i]))


@sums
def squared_difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Squared Euclidean distance of two vectors."""
    total = 0.0
    for p in range(len(a)):
        total += (a[p] - b[p]) * (a[p] - b[p])
    return total


@kernel
def unit_rows(
    x: NDArray[np.floating], members: NDArray[np.int64], inverse: NDArray[np.float64], out: NDArray[np.float32]
) -> None:
    """Rows that are `members`, times `inverse`, in float32."""
    for i in range(len(members)):
        row = members[i]
        for p in range(x.shape[1]):
            out[i, p] = x[row, p] * inverse[i]


@kernel
def rounded_rows(
    x: NDArray[np.floating],
    members: NDArray[np.int64],
    inverse: NDArray[np.float64],
    exact: NDArray[np.float32],
    exact_bits: NDArray[np.int32],
    rounded: NDArray[np.float32],
    rounded_bits: NDArray[np.int32],
    out: NDArray[np.int16],
) -> float:
    """Unit rows in bfloat16, as bits, to the nearest even; returns the largest length of what rounding took.

    Args:
        x: (m, d) rows.
        members: (n,) which of them.
        inverse: (n,) one over their lengths.
        exact: (d,) room for a row.
        exact_bits: (d,) the same memory as integers.
        rounded: (d,) room for a row.
        rounded_bits: (d,) the same memory as integers.
        out: (n, d) written.
    """
    d = x.shape[1]
    most = 0.0
    for i in range(len(members)):
        row = members[i]
        for p in range(d):
            exact[p] = x[row, p] * inverse[i]
        for p in range(d):
            bits = exact_bits[p]
            high = (bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16)
            out[i, p] = high
            rounded_bits[p] = high << np.int32(16)
        most = max(most, squared_difference(exact, rounded))
    return float(np.sqrt(most))


@kernel
def segment_maxima(
    bits: NDArray[np.integer], first_row: int, first_column: int, maxima: NDArray[np.integer], top: NDArray[np.integer]
) -> None:
    """Largest number of each row over its segments and over all, of the columns that stand before the row.

    Args:
        bits: (t, c) floats seen as integers, which have the same order where they are positive.
        first_row: rank of row 0 in the cluster.
        first_column: rank of column 0 in the cluster.
        maxima: (t, c / SEGMENT), written; 0 where nothing is positive.
        top: (t,), written, likewise.
    """
    t, c = bits.shape
    for i in range(t):
        stop = min(c, first_row + i - first_column)
        best = bits.dtype.type(0)
        for segment in range(max(0, (stop + SEGMENT - 1) // SEGMENT)):
            begin = segment * SEGMENT
            most = bits.dtype.type(0)
            if begin + SEGMENT <= stop:
                for j in range(SEGMENT):
                    most = max(most, bits[i, begin + j])
            else:
                for j in range(begin, stop):
                    most = max(most, bits[i, j])
            maxima[i, segment] = most
            best = max(best, most)
        top[i] = best


@kernel
def recompute(
    bits: NDArray[np.integer],
    first_row: int,
    first_column: int,
    maxima: NDArray[np.integer],
    low: NDArray[np.integer],
    x: NDArray[np.floating],
    members: NDArray[np.int64],
    inverse: NDArray[np.float64],
    limit: int,
    best: NDArray[np.float64],
) -> bool:
    """Raise `best` (t,) to the float64 cosines of those pairs whose rough one is `low` (t,) or more.

    Args:
        bits: (t, c) rough cosines, as for `segment_maxima`.
        first_row: rank of row 0 in the cluster.
        first_column: rank of column 0 in the cluster.
        maxima: (t, c / SEGMENT) as `segment_maxima` wrote them.
        low: (t,) bits of the lowest rough cosine that counts; 0 or less has every pair computed, for what is not
            positive has another order.
        x: rows of all clusters.
        members: (n,) the rows of this cluster.
        inverse: (n,) one over their lengths.
        limit: largest number of pairs to compute.
        best: (t,) raised.

    Returns:
        False if there were more pairs than `limit`: `best` is then unfinished, though nothing in it is wrong.
    """
    t, c = bits.shape
    done = 0
    for i in range(t):  # each of these segments holds a pair to compute: too many are seen before the first
        for segment in range(max(0, (min(c, first_row + i - first_column) + SEGMENT - 1) // SEGMENT)):
            done += maxima[i, segment] >= low[i]
    if done > limit:
        return False
    done = 0
    for i in range(t):
        row = first_row + i
        stop = min(c, row - first_column)
        for segment in range(max(0, (stop + SEGMENT - 1) // SEGMENT)):
            if maxima[i, segment] < low[i]:
                continue
            begin = segment * SEGMENT
            for j in range(begin, min(begin + SEGMENT, stop)):
                if low[i] > 0 and bits[i, j] < low[i]:
                    continue
                if done == limit:
                    return False
                done += 1
                other = first_column + j
                value = product(x, members[row], members[other]) * inverse[row] * inverse[other]
                best[i] = max(best[i], value)
    return True
