"""Compiled passes over UTF-8 bytes; what they compute is defined in plain Python in `shingles`, `minhash`, `substring`.

All arithmetic on hashes is modulo 2**64 (2**32 for the permutations): every operand is cast, for numba makes floats
of a signed and an unsigned number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from hf_prune.numerics.compiled import kernel

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]

WORDS, TOKENS, CHARACTERS = 0, 1, 2  # the units, as in words.UNITS
_SPACE, _WORD, _SIGN, _MARK, _ALONE, _KATAKANA = 0, 1, 2, 3, 4, 5  # the classes, as in words.character_table

_STEP = np.uint64(0xBF58_476D_1CE4_E5B9)
_BASE = np.uint64(0x9E37_79B9_7F4A_7C15)
_LAST = np.uint64(0x94D0_49BB_1331_11EB)
_1, _2, _27, _30, _31, _32 = (np.uint64(i) for i in (1, 2, 27, 30, 31, 32))
_7, _SHIFT = np.uint32(7), np.uint32(3)
_UNKNOWN = 0xFFFD


@intrinsic
def _affine(context: Any, a: Any, x: Any, b: Any) -> Any:
    """Give a * x + b modulo 2**32: numba's own product is one of 64 bits, half as many to a vector."""
    signature = types.uint32(types.uint32, types.uint32, types.uint32)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.add(builder.mul(args[0], args[1]), args[2])

    return signature, code


_affine32: Any = _affine


@kernel
def mix(x: np.uint64) -> np.uint64:
    """splitmix64's finalizer, as `rows.seeded` has it."""
    x = x + _BASE
    x = (x ^ (x >> _30)) * _STEP
    x = (x ^ (x >> _27)) * _LAST
    return x ^ (x >> _31)


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
        i += 1
        if c < 0x80 and unit != CHARACTERS:
            # without branches: where tokens begin and end cannot be foretold, and a wrong guess costs more than stores
            entry = table[c]
            kind = np.int64(entry & _7)
            letter = np.uint64(entry >> _SHIFT) if lower else np.uint64(c)
            goes_on = np.int64(kind == _WORD) & np.int64(current == _WORD)
            hashes[count] = state
            count += int(np.int64(inside) & (1 - goes_on))
            begin = begin if goes_on else at - low
            starts[count] = begin
            state = ((state if goes_on else np.uint64(0)) + letter + _1) * _STEP
            state ^= state >> _32
            inside = bool(np.int64(kind == _WORD) | (signs & np.int64(kind == _SIGN)))
            current = kind
            continue
        if c >= 0x80:
            more, point = 0, np.int64(_UNKNOWN)
            if 0xC2 <= c < 0xE0:
                more, point = 1, c & 0x1F
            elif 0xE0 <= c < 0xF0:
                more, point = 2, c & 0x0F
            elif 0xF0 <= c < 0xF5:
                more, point = 3, c & 0x07
            if i + more > high:
                more, point = 0, np.int64(_UNKNOWN)
            for k in range(more):
                following = np.int64(data[i + k])
                if following & 0xC0 != 0x80:
                    more, point = 0, np.int64(_UNKNOWN)
                    break
                point = (point << 6) | (following & 0x3F)
            i += more
            c = point if point < 0x110000 else np.int64(_UNKNOWN)
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
            state = (state + letter + _1) * _STEP
            state ^= state >> _32
    if inside:
        hashes[count] = state
        count += 1
    return count


@kernel
def gram(hashes: U64, count: int, n: int) -> int:
    """Replace token hashes by those of their n-grams, in place; fewer tokens than n make one gram."""
    if count == 0:
        return 0
    n = min(n, count)
    power = _1
    for _ in range(n):
        power = power * _BASE
    rolling = np.uint64(0)
    for i in range(n - 1):
        rolling = (rolling + hashes[i]) * _BASE
    gone = np.uint64(0)
    for i in range(count - n + 1):
        # `rolling` holds tokens i - 1 .. i + n - 2, times the base once more
        rolling = rolling - gone * power + hashes[i + n - 1]
        gone = hashes[i]
        hashes[i] = mix(rolling)
        rolling = rolling * _BASE
    return count - n + 1


@kernel
def minima(grams: U64, count: int, a: U32, b: U32, signature: U32) -> None:
    """The least of a * x + b modulo 2**32 over the grams' upper halves x, for each of the permutations."""
    signature[:] = np.uint32(0xFFFF_FFFF)
    k, j = len(signature), 0
    while j < count:
        # eight at a time: the signature is read and written once for them; the last is repeated to fill up
        last = count - 1
        x0, x1 = np.uint32(grams[j] >> _32), np.uint32(grams[min(j + 1, last)] >> _32)
        x2, x3 = np.uint32(grams[min(j + 2, last)] >> _32), np.uint32(grams[min(j + 3, last)] >> _32)
        x4, x5 = np.uint32(grams[min(j + 4, last)] >> _32), np.uint32(grams[min(j + 5, last)] >> _32)
        x6, x7 = np.uint32(grams[min(j + 6, last)] >> _32), np.uint32(grams[min(j + 7, last)] >> _32)
        for p in range(k):
            u, v = a[p], b[p]
            m0 = min(_affine32(u, x0, v), _affine32(u, x1, v))
            m1 = min(_affine32(u, x2, v), _affine32(u, x3, v))
            m2 = min(_affine32(u, x4, v), _affine32(u, x5, v))
            m3 = min(_affine32(u, x6, v), _affine32(u, x7, v))
            signature[p] = min(signature[p], min(min(m0, m1), min(m2, m3)))
        j += 8


@kernel
def sign(
    data: NDArray[np.uint8], offsets: I64, low: int, high: int, table: U32, unit: int, lower: bool, n: int,
    a: U32, b: U32, rows: int, keys: U64, sizes: I64, signatures: U32,
) -> None:  # fmt: skip
    """Band keys (and signatures, if there is room for them) of texts low..high, and their numbers of n-grams."""
    longest = 0
    for row in range(low, high):
        longest = max(longest, offsets[row + 1] - offsets[row])
    hashes, starts = np.empty(longest + 1, np.uint64), np.empty(longest + 1, np.int32)
    signature = np.empty(len(a), np.uint32)
    for row in range(low, high):
        count = tokenize(data, offsets[row], offsets[row + 1], table, unit, lower, hashes, starts)
        count = gram(hashes, count, n)
        sizes[row] = count
        minima(hashes, count, a, b, signature)
        for band in range(keys.shape[1]):
            state = np.uint64(band)
            for i in range(band * rows, band * rows + rows):
                state = (state ^ np.uint64(signature[i])) * _STEP
                state ^= state >> _32
            keys[row, band] = mix(state)
        if len(signatures):
            signatures[row] = signature


@kernel
def sort_mixed(x: U64, count: int, out: U64, ends: I64) -> None:
    """Write the first `count` numbers of x in ascending order to `out`: their upper bits are taken for well mixed.

    Args:
        ends: room for 2 * count + 2 numbers.
    """
    bits = 0
    while 1 << bits < count:
        bits += 1
    if bits == 0:
        out[:count] = x[:count]
        return
    shift = np.uint64(64 - bits)
    ends[: (1 << bits) + 1] = 0
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
        high = ends[bucket]
        if high - low > 32:  # numbers that occur often, or are not mixed after all
            out[low:high] = np.sort(out[low:high])
        else:
            for i in range(low + 1, high):
                value, at = out[i], i
                while at > low and out[at - 1] > value:
                    out[at] = out[at - 1]
                    at -= 1
                out[at] = value
        low = high


@kernel
def gram_sets(
    data: NDArray[np.uint8], offsets: I64, chosen: I64, low: int, high: int, table: U32, unit: int, lower: bool, n: int,
    ends: I64, out: U64,
) -> int:  # fmt: skip
    """Distinct n-gram hashes in ascending order of texts chosen[low:high], one after the other; how many in all."""
    longest = 0
    for i in range(low, high):
        longest = max(longest, offsets[chosen[i] + 1] - offsets[chosen[i]])
    hashes, starts = np.empty(longest + 1, np.uint64), np.empty(longest + 1, np.int32)
    ordered, room = np.empty(longest + 1, np.uint64), np.empty(2 * longest + 2, np.int64)
    filled = 0
    for i in range(low, high):
        row = chosen[i]
        count = tokenize(data, offsets[row], offsets[row + 1], table, unit, lower, hashes, starts)
        count = gram(hashes, count, n)
        sort_mixed(hashes, count, ordered, room)
        for j in range(count):
            if j == 0 or ordered[j] != ordered[j - 1]:
                out[filled] = ordered[j]
                filled += 1
        ends[i] = filled
    return filled


@kernel
def byte_hashes(data: NDArray[np.uint8], offsets: I64) -> U64:
    """A 64-bit hash of each text's bytes (n,), eight at a time; it is for one run, and is stored nowhere."""
    out = np.empty(len(offsets) - 1, np.uint64)
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
            state = (state + word + _1) * _STEP
            state ^= state >> _32
            i += 8
        out[row] = mix(state)
    return out


@kernel
def token_hashes(
    data: NDArray[np.uint8], offsets: I64, chosen: I64, low: int, high: int, table: U32, unit: int, lower: bool,
    ends: I64, out: U64,
) -> int:  # fmt: skip
    """Token hashes of texts chosen[low:high], one after the other; how many in all."""
    filled = 0
    longest = 0
    for i in range(low, high):
        longest = max(longest, offsets[chosen[i] + 1] - offsets[chosen[i]])
    starts = np.empty(longest + 1, np.int32)
    for i in range(low, high):
        row = chosen[i]
        filled += tokenize(data, offsets[row], offsets[row + 1], table, unit, lower, out[filled:], starts)
        ends[i] = filled
    return filled


@kernel
def windows(tokens: U64, starts: I64, ends: I64, length: int, out: U64) -> None:
    """Hash of the `length` tokens from each place on, where they lie in one text; 0 elsewhere."""
    power = _1
    for _ in range(length - 1):
        power = power * _BASE
    for text in range(len(starts)):
        rolling = np.uint64(0)
        for at in range(starts[text], ends[text]):
            if at - starts[text] >= length:
                rolling -= tokens[at - length] * power
            rolling = rolling * _BASE + tokens[at]
            if at - starts[text] >= length - 1:
                out[at - length + 1] = mix(rolling)
        for at in range(max(starts[text], ends[text] - length + 1), ends[text]):
            out[at] = np.uint64(0)


@kernel
def survivors(hashes: U64, starts: I64, ends: I64, copies: I64, length: int, bits: int) -> I64:
    """Places whose window may occur twice: those that share one of 2**bits slots, texts counted by their copies."""
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
def confirm(
    places: I64, texts: I64, hashes: U64, tokens: U64, copies: I64, rank: I64, length: int, marks: NDArray[np.uint8]
) -> None:
    """Mark places (in the order of their hashes) whose tokens occur elsewhere: 1, and 2 more for the first of them.

    First is the place in the text of the lowest rank. Tokens are compared one by one: equal hashes are not enough.
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


@kernel
def same(x: U64, i: int, y: U64, j: int, length: int) -> bool:
    """Whether x[i:i + length] equals y[j:j + length]."""
    for k in range(length):
        if x[i + k] != y[j + k]:
            return False
    return True


@kernel
def confirm_in(
    hashes: U64, tokens: U64, starts: I64, ends: I64, known: U64, places: I64, known_tokens: U64, length: int,
    marks: NDArray[np.uint8],
) -> None:  # fmt: skip
    """Mark places whose tokens occur in a reference: `known` are its hashes in ascending order, at `places`."""
    for text in range(len(starts)):
        for at in range(starts[text], ends[text] - length + 1):
            i = np.searchsorted(known, hashes[at])
            while i < len(known) and known[i] == hashes[at]:
                if same(tokens, at, known_tokens, places[i], length):
                    marks[at] = 1
                    break
                i += 1


@kernel
def cover(marks: NDArray[np.uint8], starts: I64, ends: I64, length: int) -> None:
    """Turn marks of places into marks of the `length` tokens from each on, in place."""
    for text in range(len(starts)):
        repeated, first = starts[text] - length, starts[text] - length
        for at in range(starts[text], ends[text]):
            if marks[at] & 1:
                repeated = at
            if marks[at] & 2:
                first = at
            marks[at] = np.uint8((at - repeated < length) + 2 * (at - first < length))
