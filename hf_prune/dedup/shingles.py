"""Texts as n-grams and sets of hashed n-grams: the definition, and the compiled passes from Arrow's buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_prune.checks import check_choice, check_count
from hf_prune.data.words import UNITS, character_table, tokens

Unit: TypeAlias = Literal["word", "token", "char"]
PIECE = 1 << 20  # bytes of text that a thread takes at a time

R = TypeVar("R")


class Ragged(NamedTuple):
    """Hashes of some texts, text after text: those of text i are values[starts[i]:ends[i]].

    Attributes:
        starts: (n,) where they begin.
        ends: (n,) where they end.
        values: (v,) hashes.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    values: NDArray[np.uint64]

    def __getitem__(self, i: Any) -> Any:
        return self.values[self.starts[i] : self.ends[i]]

    @classmethod
    def of(cls, parts: Sequence[tuple[NDArray[np.uint64], NDArray[np.int64]]]) -> Ragged:
        """Put pieces together: of each the hashes, and where those of its texts end."""
        shift = np.cumsum([0, *(len(values) for values, _ in parts)])
        ends = np.concatenate([np.zeros(1, np.int64), *(e + s for (_, e), s in zip(parts, shift, strict=False))])
        values = np.concatenate([np.empty(0, np.uint64), *(values for values, _ in parts)])
        return cls(ends[:-1], ends[1:], values)


def grams(text: str, ngram: int = 5, unit: Unit = "word", lower: bool = True) -> set[tuple[str, ...]]:
    """The set of n-grams of a text; fewer tokens than n make one gram, no token none.

    Args:
        text: what is cut.
        ngram: number of tokens n of an n-gram.
        unit: what a token is: see `words.tokens`.
        lower: whether case does not count.

    >>> sorted(grams("the cat sat", 2)), grams("cat", 5), grams("!", 5)
    ([('cat', 'sat'), ('the', 'cat')], {('cat',)}, set())
    """
    found = tokens(text, unit, lower)
    return {tuple(found[i : i + ngram]) for i in range(max(len(found) - ngram + 1, min(len(found), 1)))}


def check_unit(unit: Any) -> None:
    """Raise a ValueError that lists the units if `unit` is none of them."""
    check_choice("unit", unit, get_args(Unit))


def check_grams(ngram: Any, unit: Any) -> None:
    """Raise a ValueError for an n-gram length below 1 or an unknown unit."""
    check_count("ngram", ngram)
    check_unit(unit)


def buffers(array: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """UTF-8 bytes of a string array and where its texts begin and end (n + 1,), without a copy of the bytes.

    The bytes are read-only, whoever made the array: numba compiles a kernel once for those, once for others.
    """
    wide = pa.types.is_large_string(array.type)
    kind: Any = np.int64 if wide else np.int32
    _, offsets, data = array.buffers()
    if data is None or len(array) == 0:
        held, at = np.zeros(1, np.uint8), np.zeros(len(array) + 1, np.int64)
    else:
        held = np.frombuffer(data, np.uint8)
        at = np.frombuffer(offsets, kind, len(array) + 1, array.offset * kind().itemsize).astype(np.int64)
    held.flags.writeable = False
    return held, at


def pieces(sizes: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ranges of rows of about `PIECE` bytes each, for threads; sizes are (n,) bytes."""
    total = np.cumsum(sizes)
    cuts = np.searchsorted(total, np.arange(PIECE, int(total[-1]) + PIECE if len(total) else 0, PIECE), "right")
    edges = np.unique(np.concatenate([[0], cuts, [len(sizes)]]))
    return [(int(a), int(b)) for a, b in zip(edges, edges[1:], strict=False)]


def hashed(
    array: pa.Array,
    chosen: NDArray[np.int64],
    use: Callable[[slice, NDArray[np.uint64], NDArray[np.int64]], R],
    *,
    ngram: int,
    unit: Unit,
    lower: bool,
) -> list[R]:
    """Hash the n-grams of some texts piece by piece, in the threads there are, and hand each piece on.

    Args:
        array: strings.
        chosen: (k,) which of them.
        use: called, in any thread, with which of the chosen are in a piece, the hashes of their n-grams, text after
            text, and where those of each text end. It may write to both arrays, and has to copy what it keeps.
        ngram: tokens of an n-gram; 0 for the tokens themselves.
        unit: what a token is.
        lower: whether case does not count.

    Returns:
        What `use` gave, in the order of the texts. A thread holds 9 bytes for each byte of its piece, most of them
        untouched.
    """
    from hf_prune.dedup import _kernels
    from hf_prune.numerics.compiled import in_threads

    data, offsets = buffers(array)
    sizes, table, which = offsets[chosen + 1] - offsets[chosen], character_table(), UNITS.index(unit)

    def one(piece: tuple[int, int]) -> R:
        part = slice(*piece)
        out, ends = np.empty(int(sizes[part].sum()) + 1, np.uint64), np.empty(piece[1] - piece[0], np.int64)
        _kernels.token_hashes(data, offsets, chosen[part], table, which, lower, ends, out)
        if ngram:
            _kernels.gram_hashes(out, ends, ngram)
        return use(part, out[: ends[-1]], ends)

    return in_threads(one, pieces(sizes))


def token_hashes(array: pa.Array, chosen: NDArray[np.int64], unit: Unit, lower: bool) -> Ragged:
    """Hashed tokens of the texts `chosen` of a string array, in their order."""
    return Ragged.of(
        hashed(array, chosen, lambda _, found, ends: (found.copy(), ends), ngram=0, unit=unit, lower=lower)
    )


def gram_sets(array: pa.Array, chosen: NDArray[np.int64], ngram: int, unit: Unit, lower: bool) -> Ragged:
    """Sets of hashed n-grams (ascending, without repeats) of the texts `chosen` of a string array, in their order."""
    from hf_prune.dedup import _kernels

    def use(_: slice, found: NDArray[np.uint64], ends: NDArray[np.int64]) -> tuple[Any, Any]:
        _kernels.gram_sets(found, ends)
        return found[: ends[-1]].copy(), ends

    return Ragged.of(hashed(array, chosen, use, ngram=ngram, unit=unit, lower=lower))


def similarities(left: NDArray[np.int64], right: NDArray[np.int64], x: Ragged, y: Ragged) -> NDArray[np.float64]:
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
