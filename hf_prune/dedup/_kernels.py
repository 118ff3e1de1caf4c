"""Compiled passes over texts: tokens, hashed n-grams, sets of them, minima and keys of bands.

What they compute is defined in plain Python: tokens by `words.tokens`, the rest by the functions `*_plain` beside the
kernels. The tokenizer is large and stands in one kernel only, `token_hashes`: each kernel that held it would compile it
anew. Loops stand where NumPy has a whole array assigned or sorted: numba compiles seconds for those.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from hf_prune.numerics.compiled import kernel
from hf_prune.numerics.text_kernels import BASE, STEP, decode, mix, mix_plain

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]

TOKENS, CHARACTERS = 1, 2  # of the units, as in words.UNITS; 0 is words
_SPACE, _WORD, _SIGN, _MARK, _KATAKANA = 0, 1, 2, 3, 5  # of the classes, as in words.character_table

_1, _32 = np.uint64(1), np.uint64(32)
_7, _SHIFT = np.uint32(7), np.uint32(3)
_UNKNOWN = 0xFFFD


@intrinsic
def _multiply_add(context: Any, a: Any, x: Any, b: Any) -> Any:
    """Give a * x + b modulo 2**32: numba's own product is one of 64 bits, half as many to a vector."""
    signature = types.uint32(types.uint32, types.uint32, types.uint32)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.add(builder.mul(args[0], args[1]), args[2])

    return signature, code


_affine: Any = _multiply_add  # mypy takes an intrinsic for a function of its context


@kernel
def tokenize(
    data: NDArray[np.uint8], low: int, high: int, table: U32, unit: int, lower: bool, hashes: U64, starts: I32
) -> int:
    """Hashes of the tokens of data[low:high] and where they start; how many there are. As `words.tokens` cuts.

    A byte that begins no valid sequence stands for U+FFFD: nothing is read past `high`.
    """
    count, begin, i = 0, 0, low
    current, inside = np.int64(_SPACE), False  # class of the token that a mark would continue, and whether it counts
    state, signs = np.uint64(0), np.int64(unit == TOKENS)
    while i < high:
        at = i
        c = np.int64(data[i])
        if c < 0x80 and unit != CHARACTERS:
            # without branches: where tokens begin and end cannot be foretold, and a wrong guess costs more than stores
            i += 1
            entry = table[c]
            kind = np.int64(entry & _7)
            letter = np.uint64(entry >> _SHIFT) if lower else np.uint64(c)
            goes_on = np.int64(kind == _WORD) & np.int64(current == _WORD)
            hashes[count] = state
            count += int(np.int64(inside) & (1 - goes_on))
            begin = begin if goes_on else at - low
            starts[count] = begin
            state = ((state if goes_on else np.uint64(0)) + letter + _1) * STEP
            state ^= state >> _32
            inside = bool(np.int64(kind == _WORD) | (signs & np.int64(kind == _SIGN)))
            current = kind
            continue
        c, size = decode(data, i, high)
        c = np.int64(_UNKNOWN) if size == 0 else c
        i += max(size, 1)
        entry = table[c]
        kind = np.int64(entry & _7)
        letter = np.uint64(entry >> _SHIFT) if lower else np.uint64(c)
        if unit == CHARACTERS:
            starts[count] = at - low
            hashes[count] = mix(letter + _1)
            count += 1
        elif kind == _SPACE:
            hashes[count] = state
            count += inside
            inside, current = False, np.int64(_SPACE)
        else:
            if not (
                (kind == _MARK and current != _SPACE) or (kind == current and (kind == _WORD or kind == _KATAKANA))
            ):
                hashes[count] = state
                count += inside
                begin = at - low
                starts[count] = begin
                current = np.int64(_SIGN) if kind == _MARK else kind
                state, inside = np.uint64(0), current != _SIGN or unit == TOKENS
            state = (state + letter + _1) * STEP
            state ^= state >> _32
    if inside:
        hashes[count] = state
        count += 1
    return count


def token_hash_plain(token: str, unit: str = "word") -> int:
    """64-bit hash of a token: a multiplication and a shift for each code point; `mix` of a character.

    >>> hex(token_hash_plain("the"))
    '0xc08dcb944da05d36'
    """
    if unit == "char":
        return mix_plain(ord(token) + 1)
    state = 0
    for c in token:
        state = (state + ord(c) + 1) * int(STEP) & 2**64 - 1
        state ^= state >> 32
    return state


@kernel
def gram_hashes(hashes: U64, ends: I64, ngram: int) -> None:
    """Replace the token hashes of texts by those of their n-grams, in place; fewer tokens than n make one gram.

    Args:
        hashes: token hashes, text after text; those of the n-grams are written over them, without gaps.
        ends: (k,) where those of each text end; where its n-grams end, written.
        ngram: tokens n of an n-gram.
    """
    begin, filled = 0, 0
    for text in range(len(ends)):
        count = ends[text] - begin
        n = min(ngram, count)
        power, rolling, gone = _1, np.uint64(0), np.uint64(0)
        for _ in range(n):
            power = power * BASE
        for i in range(begin, begin + n - 1):
            rolling = (rolling + hashes[i]) * BASE
        for i in range(begin, begin + count - n + 1 if count else begin):
            # `rolling` holds tokens i - 1 .. i + n - 2, times the base once more
            rolling = rolling - gone * power + hashes[i + n - 1]
            gone = hashes[i]
            hashes[filled] = mix(rolling)
            filled += 1
            rolling = rolling * BASE
        begin += count
        ends[text] = filled


def gram_hash_plain(gram: list[str], unit: str = "word") -> int:
    """64-bit hash of an n-gram: the mixed value of a polynomial in the hashes of its tokens."""
    state = 0
    for token in gram:
        state = state * int(BASE) + token_hash_plain(token, unit) & 2**64 - 1
    return mix_plain(state)


@kernel
def token_hashes(
    data: NDArray[np.uint8], offsets: I64, chosen: I64, table: U32, unit: int, lower: bool, ends: I64, out: U64
) -> None:
    """Hashes of the tokens of chosen texts, text after text.

    Args:
        data: UTF-8 bytes of all texts.
        offsets: (m + 1,) where they begin, and end.
        chosen: (k,) which of them.
        table: `words.character_table`.
        unit: index in `words.UNITS`.
        lower: whether case does not count.
        ends: (k,) written: where the hashes of each text end.
        out: written: room for one more than the chosen texts have bytes.
    """
    longest, filled = 0, 0
    for i in chosen:
        longest = max(longest, offsets[i + 1] - offsets[i])
    starts = np.empty(longest + 1, np.int32)
    for at in range(len(chosen)):
        i = chosen[at]
        filled += tokenize(data, offsets[i], offsets[i + 1], table, unit, lower, out[filled:], starts)
        ends[at] = filled


@kernel
def minima(grams: U64, a: U32, b: U32, signature: U32) -> None:
    """Minima (p,) of a * x + b modulo 2**32 over the upper halves x of the hashes, for each of p permutations."""
    for p in range(len(a)):
        signature[p] = np.uint32(0xFFFF_FFFF)
    last, j = len(grams) - 1, 0
    while j <= last:
        # eight at a time: the signature is read and written once for them; the last is repeated to fill up
        x0, x1 = np.uint32(grams[j] >> _32), np.uint32(grams[min(j + 1, last)] >> _32)
        x2, x3 = np.uint32(grams[min(j + 2, last)] >> _32), np.uint32(grams[min(j + 3, last)] >> _32)
        x4, x5 = np.uint32(grams[min(j + 4, last)] >> _32), np.uint32(grams[min(j + 5, last)] >> _32)
        x6, x7 = np.uint32(grams[min(j + 6, last)] >> _32), np.uint32(grams[min(j + 7, last)] >> _32)
        for p in range(len(a)):
            u, v = a[p], b[p]
            m0 = min(_affine(u, x0, v), _affine(u, x1, v))
            m1 = min(_affine(u, x2, v), _affine(u, x3, v))
            m2 = min(_affine(u, x4, v), _affine(u, x5, v))
            m3 = min(_affine(u, x6, v), _affine(u, x7, v))
            signature[p] = min(signature[p], min(min(m0, m1), min(m2, m3)))
        j += 8


def minima_plain(grams: U64, a: U32, b: U32) -> U32:
    """Minima (p,) of one set of n-gram hashes under p permutations, in NumPy: the definition."""
    x = (grams >> _32).astype(np.uint32)
    return np.asarray((a[:, None] * x + b[:, None]).min(axis=1, initial=0xFFFF_FFFF))


@kernel
def sign(grams: U64, ends: I64, a: U32, b: U32, band_rows: int, keys: U64, signatures: U32) -> None:
    """Keys (k, bands) of the bands of k texts, and signatures (k, p) if there is room for them.

    Args:
        grams: hashes of their n-grams, text after text.
        ends: (k,) where those of each text end.
        a: (p,) factors of the permutations.
        b: (p,) terms of the permutations.
        band_rows: minima of a band.
        keys: written.
        signatures: written, unless it is empty.
    """
    signature = np.empty(len(a), np.uint32)
    begin = 0
    for text in range(len(ends)):
        minima(grams[begin : ends[text]], a, b, signature)
        begin = ends[text]
        for band in range(keys.shape[1]):
            state = np.uint64(band)
            for i in range(band * band_rows, band * band_rows + band_rows):
                state = (state ^ np.uint64(signature[i])) * STEP
                state ^= state >> _32
            keys[text, band] = mix(state)
        if len(signatures):
            for p in range(len(a)):
                signatures[text, p] = signature[p]


def sign_plain(signature: U32, bands: int, band_rows: int) -> list[int]:
    """Keys of the bands of one signature (p,): the definition."""
    keys = []
    for band in range(bands):
        state = band
        for value in signature[band * band_rows : (band + 1) * band_rows].tolist():
            state = (state ^ value) * int(STEP) & 2**64 - 1
            state ^= state >> 32
        keys.append(mix_plain(state))
    return keys


@kernel
def sort_mixed(x: U64, count: int, out: U64, ends: I64) -> None:
    """Write the first `count` numbers of x in ascending order to `out`: their upper bits are taken for well mixed.

    What it computes is `np.sort`.

    Args:
        x: the numbers.
        count: how many of them.
        out: written.
        ends: room for 2 * count + 2 numbers.
    """
    if count < 2:
        for i in range(count):
            out[i] = x[i]
        return
    bits = 1
    while 1 << bits < count:
        bits += 1
    shift = np.uint64(64 - bits)
    for bucket in range((1 << bits) + 1):
        ends[bucket] = 0
    for i in range(count):
        ends[(x[i] >> shift) + _1] += 1
    for bucket in range(1 << bits):
        ends[bucket + 1] += ends[bucket]
    for i in range(count):
        slot = np.int64(x[i] >> shift)
        out[ends[slot]] = x[i]
        ends[slot] += 1
    low = 0
    for bucket in range(1 << bits):
        high, step = ends[bucket], 1
        while step < (high - low) // 9:  # large are buckets of numbers that occur often, or are not mixed after all
            step = 3 * step + 1
        while step:
            for i in range(low + step, high):
                value, at = out[i], i
                while at >= low + step and out[at - step] > value:
                    out[at] = out[at - step]
                    at -= step
                out[at] = value
            step //= 3
        low = high


@kernel
def gram_sets(grams: U64, ends: I64) -> None:
    """Turn the n-gram hashes of each text into a set, in place: ascending, without repeats, set after set.

    Args:
        grams: hashes, text after text; the sets are written over them.
        ends: (k,) where those of each text end; where its set ends, written.
    """
    longest, begin = 0, 0
    for end in ends:
        longest = max(longest, end - begin)
        begin = end
    ordered, room = np.empty(longest, np.uint64), np.empty(2 * longest + 2, np.int64)
    filled, begin = 0, 0
    for text in range(len(ends)):
        count = ends[text] - begin
        sort_mixed(grams[begin:], count, ordered, room)
        begin += count
        for j in range(count):
            if j == 0 or ordered[j] != ordered[j - 1]:
                grams[filled] = ordered[j]
                filled += 1
        ends[text] = filled


@kernel
def byte_hashes(data: NDArray[np.uint8], offsets: I64, out: U64) -> None:
    """Write a 64-bit hash of each text's bytes (n,), eight at a time; it is for one run, and is stored nowhere."""
    for row in range(len(out)):
        i, end = offsets[row], offsets[row + 1]
        state = np.uint64(end - i)
        while i < end:
            word = np.uint64(0)
            if end - i >= 8:
                for k in range(8):  # compiled to one load
                    word |= np.uint64(data[i + k]) << np.uint64(8 * k)
            else:
                for k in range(end - i):
                    word |= np.uint64(data[i + k]) << np.uint64(8 * k)
            state = (state + word + _1) * STEP
            state ^= state >> _32
            i += 8
        out[row] = mix(state)


def byte_hash_plain(raw: bytes) -> int:
    """What `byte_hashes` computes of one text."""
    state = len(raw)
    for i in range(0, len(raw), 8):
        state = (state + int.from_bytes(raw[i : i + 8], "little") + 1) * int(STEP) & 2**64 - 1
        state ^= state >> 32
    return mix_plain(state)
