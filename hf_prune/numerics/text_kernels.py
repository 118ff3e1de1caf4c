"""Compiled parts of every pass over texts: UTF-8 as code points, and hashes mixed; beside each its plain definition.

All arithmetic on hashes is modulo 2**64: every operand is cast, for numba makes floats of a signed and an unsigned
number. numba is slow to load: only kernels import this module.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_prune.numerics.compiled import inlined

# constants of splitmix64: what is added, and the two factors of its finalizer
BASE, STEP, LAST = (np.uint64(x) for x in (0x9E37_79B9_7F4A_7C15, 0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB))
_27, _30, _31 = (np.uint64(i) for i in (27, 30, 31))


@inlined
def mix(x: np.uint64) -> np.uint64:
    """splitmix64's finalizer of a 64-bit number."""
    x = x + BASE
    x = (x ^ (x >> _30)) * STEP
    x = (x ^ (x >> _27)) * LAST
    return x ^ (x >> _31)


def mix_plain(x: int) -> int:
    """What `mix` computes, of a Python integer."""
    x = x + int(BASE) & 2**64 - 1
    x = (x ^ (x >> 30)) * int(STEP) & 2**64 - 1
    x = (x ^ (x >> 27)) * int(LAST) & 2**64 - 1
    return x ^ (x >> 31)


@inlined
def decode(data: Any, at: int, end: int) -> tuple[Any, int]:
    """Code point that begins at byte `at` of data[:end], and the number of its bytes.

    (-1, 0) where the bytes are no UTF-8: overlong forms, halves of surrogate pairs, numbers above 0x10FFFF and
    sequences that `end` cuts. Nothing is read from `end` on.
    """
    x = np.int64(data[at])
    if x < 0x80:
        return x, 1
    size = 2 if 0xC2 <= x < 0xE0 else 3 if 0xE0 <= x < 0xF0 else 4 if 0xF0 <= x < 0xF5 else 0
    if size == 0 or at + size > end:
        return -1, 0
    point = x & (0xFF >> (size + 1))
    for i in range(1, size):
        y = np.int64(data[at + i])
        if y & 0xC0 != 0x80:
            return -1, 0
        point = point << 6 | y & 0x3F
    if point < (0x800 if size == 3 else 0x10000 if size == 4 else 0x80):
        return -1, 0
    if point > 0x10FFFF or 0xD800 <= point < 0xE000:
        return -1, 0
    return point, size


def decode_plain(raw: bytes, at: int) -> tuple[int, int]:
    r"""What `decode` computes, by Python's own decoder.

    >>> decode_plain("né".encode(), 1), decode_plain(b"\xed\xa0\x80", 0)
    ((233, 2), (-1, 0))
    """
    for size in range(1, 5):
        try:
            return ord(raw[at : at + size].decode()), size
        except (UnicodeDecodeError, TypeError):
            continue
    return -1, 0
