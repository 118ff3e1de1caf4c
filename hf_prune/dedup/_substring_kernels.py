"""Compiled passes over hashed tokens: runs of them, and which occur elsewhere.

What they compute together is defined by `repeated_spans_plain`. All arithmetic on hashes is modulo 2**64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_prune.numerics.compiled import inlined, kernel
from hf_prune.numerics.text_kernels import BASE, mix

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


def repeated_spans_plain(texts: Sequence[Sequence[Any]], min_tokens: int) -> list[list[tuple[int, int]]]:
    """Maximal spans [start, end) of each text made of runs of `min_tokens` tokens that occur twice or more.

    >>> repeated_spans_plain(["a b c d e f".split(), "x b c d e y".split(), "q r s".split()], 3)
    [[(1, 5)], [(1, 5)], []]
    """
    count: dict[tuple[Any, ...], int] = {}
    runs = [[tuple(t[i : i + min_tokens]) for i in range(len(t) - min_tokens + 1)] for t in texts]
    for run in (run for text in runs for run in text):
        count[run] = count.get(run, 0) + 1
    out = []
    for text in runs:
        spans: list[tuple[int, int]] = []
        for at, run in enumerate(text):
            if count[run] > 1:
                joined = bool(spans) and at <= spans[-1][1]
                spans[-1:] = [(spans[-1][0], at + min_tokens)] if joined else [*spans[-1:], (at, at + min_tokens)]
        out.append(spans)
    return out


@kernel
def windows(tokens: U64, starts: I64, ends: I64, length: int, out: U64) -> None:
    """Hash of the `length` tokens from each on, where they lie in one text; 0 elsewhere."""
    power = np.uint64(1)
    for _ in range(length - 1):
        power = power * BASE
    for text in range(len(starts)):
        rolling = np.uint64(0)
        for at in range(starts[text], ends[text]):
            if at - starts[text] >= length:
                rolling -= tokens[at - length] * power
            rolling = rolling * BASE + tokens[at]
            if at - starts[text] >= length - 1:
                out[at - length + 1] = mix(rolling)
        for at in range(max(starts[text], ends[text] - length + 1), ends[text]):
            out[at] = np.uint64(0)


@kernel
def survivors(hashes: U64, starts: I64, ends: I64, copies: I64, length: int, bits: int) -> I64:
    """First tokens of runs that may occur twice: they share one of 2**bits slots. Copies of a text count."""
    seen = np.zeros(1 << bits, np.uint8)
    shift = np.uint64(64 - bits)
    for text in range(len(starts)):
        more = 2 if copies[text] > 1 else 1
        for at in range(starts[text], ends[text] - length + 1):
            slot = hashes[at] >> shift
            seen[slot] = min(seen[slot] + more, 2)
    total = 0
    for text in range(len(starts)):
        for at in range(starts[text], ends[text] - length + 1):
            total += seen[hashes[at] >> shift] == 2
    out = np.empty(total, np.int64)
    filled = 0
    for text in range(len(starts)):
        for at in range(starts[text], ends[text] - length + 1):
            if seen[hashes[at] >> shift] == 2:
                out[filled] = at
                filled += 1
    return out


@kernel
def confirm(places: I64, texts: I64, hashes: U64, tokens: U64, copies: I64, rank: I64, length: int, marks: U8) -> None:
    """Mark first tokens of runs (in the order of their hashes) that occur elsewhere: 1, and 2 more for the first run.

    First is the run in the text of the lowest rank. Tokens are compared one by one: equal hashes are not enough.
    """
    low = 0
    while low < len(places):
        high = low
        while high < len(places) and hashes[places[high]] == hashes[places[low]]:
            high += 1
        done = np.zeros(high - low, np.bool_)
        for i in range(low, high):
            if done[i - low]:
                continue
            first, total = i, 0
            for j in range(i, high):
                if not done[j - low] and same(tokens, places[i], tokens, places[j], length):
                    done[j - low] = True
                    total += copies[texts[j]]
                    marks[places[j]] = 1
                    if (rank[texts[j]], places[j]) < (rank[texts[first]], places[first]):
                        first = j
            marks[places[first]] = 3 if total > 1 else 0
        low = high


@inlined
def same(x: U64, i: int, y: U64, j: int, length: int) -> bool:
    """Whether x[i:i + length] equals y[j:j + length]."""
    for k in range(length):
        if x[i + k] != y[j + k]:
            return False
    return True


@kernel
def confirm_in(
    hashes: U64, tokens: U64, starts: I64, ends: I64, known: U64, places: I64, known_tokens: U64, length: int,
    marks: U8,
) -> None:  # fmt: skip
    """Mark the first tokens of runs that occur in a reference: of its runs `known` are the hashes, ascending."""
    for text in range(len(starts)):
        for at in range(starts[text], ends[text] - length + 1):
            i = np.searchsorted(known, hashes[at])
            while i < len(known) and known[i] == hashes[at]:
                if same(tokens, at, known_tokens, places[i], length):
                    marks[at] = 1
                    break
                i += 1


@kernel
def cover(marks: U8, starts: I64, ends: I64, length: int) -> None:
    """Turn marks of first tokens into marks of the `length` tokens from each on, in place."""
    for text in range(len(starts)):
        repeated, first = starts[text] - length, starts[text] - length
        for at in range(starts[text], ends[text]):
            if marks[at] & 1:
                repeated = at
            if marks[at] & 2:
                first = at
            marks[at] = np.uint8((at - repeated < length) + 2 * (at - first < length))
