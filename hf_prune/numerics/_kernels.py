"""Compiled loops of `search` and `kmeans`. Their plain twins, which are the definitions, stand in the tests."""

from __future__ import annotations

import numpy as np
from numba import njit

from hf_prune.numerics.compiled import kernel, sums

PART = 64  # products whose largest is remembered


@njit(inline="always")
def _ordered(bits):  # type: ignore[no-untyped-def]
    """Bits of a float32 as an integer of the same order."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@sums
def _product(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for c in range(len(a)):
        total += np.float64(a[c]) * b[c]
    return total


@kernel
def settle(
    bits: np.ndarray,
    x: np.ndarray,
    slack: np.ndarray,
    exact: np.ndarray,
    halves: np.ndarray,
    crowd: int,
    index: np.ndarray,
) -> bool:
    """Columns of the largest of `x.v - half` of each row, where it is known in float32 only; the lowest of equals.

    Args:
        bits: (n, k) int32 bits of the float32 numbers.
        x: (n, d) rows.
        slack: (n,) how far each number may be off.
        exact: (k, d) float64 v.
        halves: (k,) float64.
        crowd: columns a row, on average, at which telling them apart costs more than all products in float64.
        index: (n, 1) or (n, 2) int64, written, the largest first.

    Returns:
        False where too many columns come close: take another way.
    """
    n, k = bits.shape
    word, wide = np.empty(1, np.int32), np.empty(1, np.float32)
    as_float, as_word = word.view(np.float32), wide.view(np.int32)
    two = index.shape[1] == 2
    compared = 0
    for i in range(n):
        row = bits[i]
        top = _ordered(row[0])
        for j in range(1, k):
            top = max(top, _ordered(row[j]))
        if two:  # what decides is the second largest
            once, second = False, np.int32(-0x7FFFFFFF)
            for j in range(k):
                value = _ordered(row[j])
                if value == top and not once:
                    once = True
                else:
                    second = max(second, value)
            top = second
        word[0] = _ordered(top)
        wide[0] = as_float[0] - np.float32(2.0 * slack[i])
        low = _ordered(as_word[0]) - np.int32(1)
        count = np.int32(0)
        for j in range(k):
            count += np.int32(_ordered(row[j]) >= low)
        if count == 1 and not two:
            for j in range(k):
                if _ordered(row[j]) >= low:
                    index[i, 0] = j
                    break
            continue
        compared += int(count)
        if compared > crowd * n:
            return False
        first, next_, best, other = -1, -1, 0.0, 0.0
        for j in range(k):
            if _ordered(row[j]) < low:
                continue
            exactly = _product(x[i], exact[j]) - halves[j]
            if first < 0 or exactly > best:
                other, next_ = best, first
                best, first = exactly, j
            elif next_ < 0 or exactly > other:
                other, next_ = exactly, j
        index[i, 0] = first
        if two:
            index[i, 1] = next_
    return True


@sums
def lengths(x: np.ndarray, length: np.ndarray) -> None:
    """Length (n,) float32 of each of (n, d) float32 rows."""
    n, d = x.shape
    for i in range(n):
        total = np.float32(0)
        for c in range(d):
            total += x[i, c] * x[i, c]
        length[i] = np.sqrt(total)


@sums
def unit(x: np.ndarray, out: np.ndarray, squares: np.ndarray) -> None:
    """Rows of (n, d) float32 at length 1, into `out` (NaN for zero rows); and their squared lengths (n,) float32."""
    n, d = x.shape
    for i in range(n):
        total = np.float32(0)
        for c in range(d):
            total += x[i, c] * x[i, c]
        squares[i] = total
        scale = np.float32(1) / np.sqrt(total)
        for c in range(d):
            out[i, c] = x[i, c] * scale


@sums
def cosines(x: np.ndarray, index: np.ndarray, exact: np.ndarray, cosine: np.ndarray) -> None:
    """Cosine (n,) in float64 of each of (n, d) rows to the direction of its index; NaN for zero rows."""
    n, d = x.shape
    for i in range(n):
        direction = exact[index[i]]
        dot, square = 0.0, 0.0
        for c in range(d):
            value = np.float64(x[i, c])
            dot += value * direction[c]
            square += value * value
        cosine[i] = dot / np.sqrt(square) if square > 0 else np.nan


@kernel
def screen(
    bits: np.ndarray,
    x: np.ndarray,
    length: np.ndarray,
    exact: np.ndarray,
    rounding: np.float32,
    crowd: int,
    index: np.ndarray,
) -> bool:
    """Column of the largest product of each row, where the products are known in bfloat16 only.

    Args:
        bits: (n, k) int16 bits of the products, in the order of the numbers where they are positive.
        x: (n, d) float32 rows.
        length: (n,) float32, of the rows.
        exact: (k, d) float64 directions of length 1.
        rounding: of a number in bfloat16, relative.
        crowd: directions a row, on average, at which comparing them costs more than all products.
        index: (n,) int64, written.

    Returns:
        False where a row has no positive product, or too many directions come close: take another way.
    """
    n, k = bits.shape
    parts = (k + PART - 1) // PART
    tops = np.empty(parts, np.int16)
    wide, words = np.empty(1, np.float32), np.empty(1, np.int32)
    as_words, as_floats = wide.view(np.int32), words.view(np.float32)
    compared = 0
    for i in range(n):
        row = bits[i]
        top = np.int16(-32768)
        for part in range(parts):
            largest_of = np.int16(-32768)
            for j in range(part * PART, min(k, part * PART + PART)):
                largest_of = max(largest_of, row[j])
            tops[part] = largest_of
            top = max(top, largest_of)
        words[0] = np.int32(top) << 16
        value = as_floats[0]
        # |x.v - x'.v'| <= |x| (two roundings, and the sum in float32), then the product's own; for each of two
        bar = value - 2 * (length[i] * (2 * rounding + np.float32(1e-4)) + abs(value) * rounding * np.float32(1.01))
        if not bar > 0:
            return False
        wide[0] = bar
        low = np.int16(as_words[0] >> 16)  # rounded down
        count, first, best = 0, -1, 0.0
        for part in range(parts):
            if tops[part] < low:
                continue
            for j in range(part * PART, min(k, part * PART + PART)):
                if row[j] >= low:
                    if count == 0:
                        first = j
                    else:
                        if count == 1:
                            best = _product(x[i], exact[first])
                        other = _product(x[i], exact[j])
                        if other > best:
                            best, first = other, j
                    count += 1
        index[i] = first
        compared += count
        if compared > crowd * n:
            return False
    return True


@kernel
def add_rows(
    sums_: np.ndarray, x: np.ndarray, labels: np.ndarray, rows: np.ndarray, sign: float, begin: int, end: int
) -> None:
    """Add (sign 1) or take (sign -1) rows to the float64 sums of their clusters, columns `begin` to `end` of them."""
    for row in rows:
        total = sums_[labels[row]]
        values = x[row]
        for c in range(begin, end):
            total[c] += sign * values[c]
