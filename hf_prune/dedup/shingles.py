"""Texts as n-grams and sets of hashed n-grams: the definitions, in plain Python, and the compiled passes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_prune.data.words import UNITS as UNITS
from hf_prune.data.words import character_table as character_table
from hf_prune.data.words import tokens as tokens

_MASK = 2**64 - 1
_STEP, _BASE, _LAST = 0xBF58_476D_1CE4_E5B9, 0x9E37_79B9_7F4A_7C15, 0x94D0_49BB_1331_11EB
PIECE = 4 << 20  # bytes of text that a thread takes at a time


class Sets(NamedTuple):
    """Sets of hashes, one after the other: set i is values[starts[i]:ends[i]], ascending, without repeats."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    values: NDArray[np.uint64]

    def __getitem__(self, i: Any) -> Any:
        return self.values[self.starts[i] : self.ends[i]]


def token_hash(token: str, unit: str = "word") -> int:
    """64-bit hash of a token: a multiplication and a shift for each code point; splitmix64's finalizer of a character.

    >>> hex(token_hash("the"))
    '0xc08dcb944da05d36'
    """
    if unit == "char":
        return mix(ord(token) + 1)
    state = 0
    for c in token:
        state = (state + ord(c) + 1) * _STEP & _MASK
        state ^= state >> 32
    return state


def mix(x: int) -> int:
    """splitmix64's finalizer of one integer."""
    x = x + _BASE & _MASK
    x = (x ^ (x >> 30)) * _STEP & _MASK
    x = (x ^ (x >> 27)) * _LAST & _MASK
    return x ^ (x >> 31)


def gram_hash(gram: list[str], unit: str = "word") -> int:
    """64-bit hash of an n-gram: the mixed value of a polynomial in the hashes of its tokens."""
    state = 0
    for token in gram:
        state = state * _BASE + token_hash(token, unit) & _MASK
    return mix(state)


def grams(text: str, ngram: int = 5, unit: str = "word", lower: bool = True) -> set[tuple[str, ...]]:
    """The set of n-grams of a text; fewer tokens than n make one gram, no token none.

    >>> sorted(grams("the cat sat", 2)), grams("cat", 5), grams("!", 5)
    ([('cat', 'sat'), ('the', 'cat')], {('cat',)}, set())
    """
    found = tokens(text, unit, lower)
    return {tuple(found[i : i + ngram]) for i in range(max(len(found) - ngram + 1, min(len(found), 1)))}


def jaccard(x: set[Any], y: set[Any]) -> float:
    """Jaccard similarity |x and y| / |x or y|; 0 of two empty sets.

    >>> a, b = ("the cat sat on the mat", "the cat sat on the rug")
    >>> round(jaccard(grams(a, 2), grams(b, 2)), 4)
    0.6667
    """
    return len(x & y) / len(x | y) if x or y else 0.0


def check_grams(ngram: int, unit: str, units: tuple[str, ...] = UNITS) -> None:
    """Raise a ValueError for an n-gram length below 1 or an unknown unit."""
    if isinstance(ngram, bool) or not isinstance(ngram, int) or ngram < 1:
        raise ValueError(f"ngram={ngram!r} is no length of an n-gram; give an integer of 1 or more, such as 5")
    if unit not in units:
        raise ValueError(f"unit={unit!r} is not known; choose one of {', '.join(map(repr, units))}")


def buffers(array: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """UTF-8 bytes of a string array and where its texts begin and end (n + 1,), without a copy of the bytes."""
    wide = pa.types.is_large_string(array.type)
    kind: Any = np.int64 if wide else np.int32
    _, offsets, data = array.buffers()
    if data is None or len(array) == 0:
        return np.zeros(1, np.uint8), np.zeros(len(array) + 1, np.int64)
    at = np.frombuffer(offsets, kind, len(array) + 1, array.offset * kind().itemsize).astype(np.int64)
    return np.frombuffer(data, np.uint8), at


def pieces(sizes: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ranges of rows of about 4 MB each, for threads; sizes are (n,) bytes."""
    total = np.cumsum(sizes)
    cuts = np.searchsorted(total, np.arange(PIECE, int(total[-1]) + PIECE if len(total) else 0, PIECE), "right")
    edges = np.unique(np.concatenate([[0], cuts, [len(sizes)]]))
    return [(int(a), int(b)) for a, b in zip(edges, edges[1:], strict=False)]


def gram_sets(array: pa.Array, chosen: NDArray[np.int64], ngram: int, unit: str, lower: bool) -> Sets:
    """Sets of hashed n-grams of the texts `chosen` of a string array, in their order."""
    from hf_prune.dedup import _kernels
    from hf_prune.numerics.compiled import in_threads

    data, offsets = buffers(array)
    table, which = character_table(), UNITS.index(unit)
    sizes = offsets[chosen + 1] - offsets[chosen]
    ends = np.zeros(len(chosen), np.int64)

    def run(piece: tuple[int, int]) -> NDArray[np.uint64]:
        low, high = piece
        out = np.empty(int(sizes[low:high].sum()) + 1, np.uint64)
        filled = _kernels.gram_sets(data, offsets, chosen, low, high, table, which, lower, ngram, ends, out)
        return out[:filled].copy()

    ranges = pieces(sizes)
    parts = in_threads(run, ranges)
    start = 0
    for (low, high), part in zip(ranges, parts, strict=True):
        ends[low:high] += start
        start += len(part)
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    return Sets(starts.astype(np.int64), ends, np.concatenate(parts) if parts else np.empty(0, np.uint64))


def similarities(left: NDArray[np.int64], right: NDArray[np.int64], x: Sets, y: Sets) -> NDArray[np.float64]:
    """Jaccard similarity (p,) of sets x[left[i]] and y[right[i]]; 0 of two empty ones."""
    from hf_prune.dedup import _link_kernels
    from hf_prune.numerics.compiled import in_threads

    out = np.zeros(len(left))
    step = max(1, min(1 << 15, -(-len(left) // 4)))
    in_threads(
        lambda low: _link_kernels.jaccards(left, right, *x, *y, low, min(low + step, len(left)), out),
        range(0, len(left), step),
    )
    return out
