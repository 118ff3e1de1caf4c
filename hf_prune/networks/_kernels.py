"""Compiled loop of `statistics.of_tokens`. Its plain twin, which is the definition, stands in the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from hf_prune.numerics.compiled import kernel, sums

PART = 1024  # logits whose largest is remembered, and that are summed in float32
LN2 = 0.6931471805599453
FLOOR = np.float32(-87.0)  # logits this far below the largest count as this far: exp gives 1.6e-38, and a sum is >= 1
LEAST = np.int32(-8388608)  # bits of -inf
_LOG2E, _HALF, _ONE = np.float32(1 / LN2), np.float32(0.5), np.float32(1)
# 2**x = 1 + P1 x + ... for |x| <= 1/2, to 1.1e-7; one of the least largest error, found by weighted least squares
_P1, _P2, _P3 = np.float32(0.69314698), np.float32(0.24022242), np.float32(0.05550734)
_P4, _P5 = np.float32(0.00967151), np.float32(0.00132647)


@intrinsic
def _of_bits(context: Any, bits: Any) -> Any:
    """Give the float32 of 32 bits; through arrays, the loop could not be one."""
    signature = types.float32(types.int32)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return signature, code


_float: Any = _of_bits


@njit(inline="always")
def _ordered(bits):  # type: ignore[no-untyped-def]
    """Bits of a float32 as an integer of the same order, and back."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@kernel
def _widen(bits: np.ndarray, shift: int, words: np.ndarray) -> Any:
    """Copy logits as bits of float32; gives the largest as an ordered integer."""
    top, by = _ordered(LEAST), np.int32(shift)
    for j in range(len(words)):
        word = np.int32(np.int32(bits[j]) << by)
        words[j] = word
        top = max(top, _ordered(word))
    return top


@kernel
def _part(bits: np.ndarray, shift: int, y: int, words: np.ndarray) -> Any:
    """`_widen`, with -inf for the label's logit where that is among them."""
    top = _widen(bits, shift, words)
    if 0 <= y < len(words):
        words[y] = LEAST
        top = _ordered(LEAST)
        for word in words:
            top = max(top, _ordered(word))
    return top


@kernel
def _second(words: np.ndarray, top: int) -> Any:
    """The second largest of some bits, if `top` is the largest; they may be equal."""
    following, equal = _ordered(LEAST), np.int32(0)
    for word in words:
        other = _ordered(word)
        equal = np.int32(equal + np.int32(other == top))
        following = max(following, _ordered(LEAST) if other == top else other)
    return top if equal > 1 else following


@sums
def _powers(z: np.ndarray, top: float) -> tuple[Any, Any, Any]:
    """Sums of e^s, e^2s and s e^s for s = max(z - top, FLOOR); the last is NaN if one of z is."""
    total, squares, inner = np.float32(0), np.float32(0), np.float32(0)
    for j in range(len(z)):
        s = z[j] - top
        s = FLOOR if s < FLOOR else s
        t = s * _LOG2E
        k = np.int32(t - _HALF) if s >= FLOOR else np.int32(0)  # for NaN too
        x = t - np.float32(k)
        mantissa = ((((_P5 * x + _P4) * x + _P3) * x + _P2) * x + _P1) * x + _ONE
        e = mantissa * _float(np.int32((k + np.int32(127)) << np.int32(23)))
        total += e
        squares += e * e
        inner += s * e
    return total, squares, inner


@kernel
def tokens(bits: np.ndarray, shift: int, starts: np.ndarray, labels: np.ndarray, width: int, out: np.ndarray) -> None:
    """What the statistics of tokens are made of, from one look at the logits z of each.

    Args:
        bits: of the logits, flat: int32 of float32, or int16 of bfloat16.
        shift: 16 where they are bfloat16, else 0.
        starts: (m,) where the logits of each token begin.
        labels: (m,) from 0 to width - 1.
        width: V.
        out: (m, 7) float64, written: z_y; r, the largest other logit; the next of the others; 1 if a class before y has
            a logit as large as z_y, and that is r, else 0; and the sums over v != y of e^s, e^2s and s e^s with
            s = z_v - r. All NaN where z_y - r is not finite, or a logit is NaN.
    """
    count = (width + PART - 1) // PART
    words = np.empty(width, np.int32)  # read once from memory, then from a cache
    z = words.view(np.float32)
    for i in range(len(starts)):
        y, token = labels[i], bits[starts[i] : starts[i] + width]
        z_y = _float(np.int32(np.int32(token[y]) << np.int32(shift)))
        top, following, first = _ordered(LEAST), _ordered(LEAST), 0
        for part in range(count):
            begin, end = part * PART, min(width, part * PART + PART)
            largest = _part(token[begin:end], shift, y - begin, words[begin:end])
            if largest > top:
                top, following, first = largest, top, begin
            else:
                following = max(following, largest)
        rival = _float(_ordered(top))
        total, squares, inner = 0.0, 0.0, np.nan
        if np.isfinite(z_y - rival):
            inner = 0.0
            for part in range(count):
                a, b, c = _powers(z[part * PART : min(width, part * PART + PART)], rival)
                total, squares, inner = total + a, squares + b, inner + c
        if np.isnan(inner):
            out[i] = np.nan
            continue
        following = max(following, _second(words[first : min(width, first + PART)], top))
        earlier = 0.0
        if z_y == rival:
            for j in range(y):
                if z[j] == z_y:
                    earlier = 1.0
                    break
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = z_y, rival, _float(_ordered(following)), earlier
        out[i, 4], out[i, 5], out[i, 6] = total, squares, inner
