"""Compiled kernels of the scorers; each has its plain twin in the file of its method."""

from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np
from llvmlite import ir
from numba import int64, types, uint8, uint32, uint64
from numba.extending import intrinsic

from hf_prune.numerics.compiled import inlined, kernel
from hf_prune.numerics.text_kernels import BASE, STEP, decode, mix

LANES = 16  # messages hashed side by side: one AVX-512 register of words
ONE_BLOCK = 55  # bytes of a message that SHA-256 pads to a single block
SLOTS = 1 << 16  # of a piece's memory of buckets, for n-grams of up to
SLOT_WORDS = 4  # times 8 bytes
SPACE, WORD, SIGN, MARK, ALONE = 0, 1, 2, 3, 4  # classes, as in words.character_table
DOTTED_I, DOT_ABOVE = 0x130, 0x307


def _sha_constants() -> tuple[np.ndarray, np.ndarray]:
    """First 32 bits of the fractions of the cube roots of 64 primes, and of the square roots of 8."""
    primes = [p for p in range(2, 312) if all(p % q for q in range(2, isqrt(p) + 1))]
    thirds = []
    for p in primes:
        root = round((p << 96) ** (1 / 3))
        for _ in range(8):  # Newton, in integers
            root = (2 * root + (p << 96) // (root * root)) // 3
        while root**3 > p << 96:
            root -= 1
        while (root + 1) ** 3 <= p << 96:
            root += 1
        thirds.append(root & 0xFFFF_FFFF)
    halves = [isqrt(p << 64) & 0xFFFF_FFFF for p in primes[:8]]
    return np.array(thirds, np.uint32), np.array(halves, np.uint32)


ROUNDS, START = _sha_constants()


@inlined
def _rotate(x: Any, n: Any) -> Any:
    return uint32((x >> uint32(n)) | (x << uint32(32 - n)))


@kernel
def _compress(w: Any, state: Any, v: Any) -> None:
    """One block of SHA-256 in every lane: message words in `w` (64 x LANES, flat), `state` (8 x LANES) is updated.

    The arrays are flat and the inner loops run over lanes, so that the compiler turns them into vector instructions.
    """
    for t in range(16, 64):
        for lane in range(LANES):
            x, y = w[LANES * t - 15 * LANES + lane], w[LANES * t - 2 * LANES + lane]
            s0 = _rotate(x, 7) ^ _rotate(x, 18) ^ uint32(x >> uint32(3))
            s1 = _rotate(y, 17) ^ _rotate(y, 19) ^ uint32(y >> uint32(10))
            w[LANES * t + lane] = uint32(w[LANES * t - 16 * LANES + lane] + s0 + w[LANES * t - 7 * LANES + lane] + s1)
    for i in range(8 * LANES):
        v[i] = state[i]
    for first in range(0, 64, 8):
        for lane in range(LANES):
            a, b, c, d = v[lane], v[LANES + lane], v[2 * LANES + lane], v[3 * LANES + lane]
            e, f, g, h = v[4 * LANES + lane], v[5 * LANES + lane], v[6 * LANES + lane], v[7 * LANES + lane]
            for r in range(8):
                high = _rotate(e, 6) ^ _rotate(e, 11) ^ _rotate(e, 25)
                chosen = (e & f) ^ (~e & g)
                t1 = uint32(h + high + chosen + ROUNDS[first + r] + w[LANES * first + LANES * r + lane])
                low = _rotate(a, 2) ^ _rotate(a, 13) ^ _rotate(a, 22)
                t2 = uint32(low + ((a & b) ^ (a & c) ^ (b & c)))
                h, g, f, e, d, c, b, a = g, f, e, uint32(d + t1), c, b, a, uint32(t1 + t2)
            v[lane], v[LANES + lane], v[2 * LANES + lane], v[3 * LANES + lane] = a, b, c, d
            v[4 * LANES + lane], v[5 * LANES + lane], v[6 * LANES + lane], v[7 * LANES + lane] = e, f, g, h
    for i in range(8 * LANES):
        state[i] = uint32(state[i] + v[i])


@kernel
def _load(words: Any, w: Any) -> None:
    """The lanes' blocks (LANES x 16 words as they lie in memory) as big-endian words of `w`, lanes side by side."""
    for t in range(16):
        for lane in range(LANES):
            x = words[16 * lane + t]
            w[LANES * t + lane] = uint32(
                (x >> uint32(24)) | ((x >> uint32(8)) & uint32(0xFF00)) | ((x & uint32(0xFF00)) << uint32(8))
                | (x << uint32(24))
            )  # fmt: skip


@kernel
def _bucket(state: Any, lane: Any, powers: Any, buckets: Any) -> Any:
    """The 256-bit number of a lane modulo `buckets`: its words times 2**32, 2**64, ... taken modulo it."""
    total = uint64(0)
    for j in range(8):
        total += uint64(state[LANES * j + lane]) * powers[j]
    return total % buckets


@kernel
def _flush(
    pending: Any, words: Any, w: Any, state: Any, v: Any, where: Any, powers: Any, buckets: Any, ids: Any,
    slots: Any, known: Any, known_ids: Any,
) -> None:  # fmt: skip
    """Hash the waiting n-grams, all of one block; write their buckets where they belong, remember the short ones."""
    _load(words, w)
    for j in range(8):
        for lane in range(LANES):
            state[LANES * j + lane] = START[j]
    _compress(w, state, v)
    for lane in range(pending):
        bucket = _bucket(state, lane, powers, buckets)
        ids[where[lane]] = bucket
        slot = slots[lane]
        if slot >= 0:
            for j in range(2 * SLOT_WORDS):
                known[2 * SLOT_WORDS * slot + j] = words[16 * lane + j]
            known_ids[slot] = bucket


@kernel
def _long(text: Any, a: int, b: int, blocks: Any, words: Any, w: Any, state: Any, v: Any) -> None:
    """SHA-256 of text[a:b] of any length in lane 0."""
    for j in range(8):
        state[LANES * j] = START[j]
    length = b - a
    for first in range(0, length + 9, 64):
        for i in range(64):
            at = first + i
            blocks[i] = text[a + at] if at < length else 0x80 if at == length else 0
        if first + 64 >= length + 9:
            for i in range(8):
                blocks[63 - i] = ((8 * length) >> (8 * i)) & 0xFF
        _load(words, w)
        _compress(w, state, v)


def _load_eight(context: Any, array: Any, at: Any) -> Any:
    """Eight bytes of a uint8 array from any position on, as one little-endian number: a single load."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        given = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.bitcast(builder.gep(given.data, [arguments[1]]), ir.IntType(64).as_pointer())
        return builder.load(place, align=1)

    return uint64(types.Array(uint8, 1, "C"), int64), generate


_eight_bytes: Any = intrinsic(_load_eight)


@kernel
def _padded(text: Any, start: int, length: int, word: int) -> Any:
    """Eight bytes of the message text[start:start + length], SHA-256's first bit of padding behind it, then zeros."""
    left = length - 8 * word
    if left < 0:
        return uint64(0)
    x = _eight_bytes(text, start + 8 * word)
    if left >= 8:
        return x
    shift = uint64(8 * left)
    return (x & ((uint64(1) << shift) - uint64(1))) | (uint64(0x80) << shift)


@kernel
def _encode(point: int, out: Any, at: int) -> int:
    """Write a code point as UTF-8; the position behind it."""
    if point < 0x80:
        out[at] = point
        return at + 1
    if point < 0x800:
        out[at] = 0xC0 | point >> 6
        out[at + 1] = 0x80 | point & 0x3F
        return at + 2
    if point < 0x10000:
        out[at] = 0xE0 | point >> 12
        out[at + 1] = 0x80 | point >> 6 & 0x3F
        out[at + 2] = 0x80 | point & 0x3F
        return at + 3
    out[at] = 0xF0 | point >> 18
    out[at + 1] = 0x80 | point >> 12 & 0x3F
    out[at + 2] = 0x80 | point >> 6 & 0x3F
    out[at + 3] = 0x80 | point & 0x3F
    return at + 4


@kernel
def write_tokens(data: Any, first: int, end: int, table: Any, text: Any, starts: Any, ends: Any) -> int:
    """Lower-cased tokens of UTF-8 bytes data[first:end], written to `text` with one space before each.

    Cut as `words.sign_runs` does.

    Args:
        table: `words.character_table`.
        text: room for 3 bytes a byte, and 64 more.
        starts, ends: room for a token a byte, and 2 more.

    Returns:
        The number of tokens, token i being text[starts[i]:ends[i + 1]]; -1 where the bytes are no UTF-8.
    """
    tokens, put, current = 0, 0, uint32(SPACE)
    at = first
    while at < end:
        x = data[at]
        if x < 0x80:
            # without branches: where tokens begin and end cannot be foretold, and a wrong guess costs more than stores
            entry = table[x]
            kind = entry & uint32(7)
            inside = int64(kind != SPACE)
            begins = inside & int64(kind != current)
            text[put] = 0x20
            put += begins
            starts[tokens] = put
            tokens += begins
            text[put] = entry >> uint32(3)
            put += inside
            ends[tokens] = put
            current = kind
            at += 1
            continue
        found, size = decode(data, at, end)
        if size == 0:
            return -1
        at += size
        for part in range(2 if found == DOTTED_I else 1):  # the one character whose lower case is two
            entry = table[DOT_ABOVE if part else found]
            kind, point = entry & uint32(7), int64(entry >> uint32(3))
            if kind == SPACE:
                current = kind
                continue
            if kind == MARK:
                kind = uint32(SIGN) if current == SPACE else current  # on nothing it is a sign, else it goes on
            elif kind == ALONE:
                current = uint32(SPACE)
            if kind != current:
                text[put] = 0x20
                put += 1
                starts[tokens] = put
                tokens += 1
            put = _encode(point, text, put)
            ends[tokens] = put
            current = kind
    return tokens


@kernel
def hash_ngrams(
    data: Any, offsets: Any, table: Any, n: int, buckets: Any, powers: Any, fast: bool,
    text: Any, starts: Any, ends: Any, ids: Any, tokens: Any, stops: Any,
) -> int:  # fmt: skip
    """Buckets of all n-grams of orders 1 to n of some rows, in the order of their last tokens.

    Args:
        data, offsets: UTF-8 bytes and (rows + 1,) where each row begins.
        table, text, starts, ends: as in `write_tokens`, with room for the longest row.
        buckets, powers: their number, and 2**(32 * (7 - j)) modulo it, uint64.
        fast: the sooner hash of `_ngrams.bucket_of` instead of SHA-256.
        ids: room for the buckets, int32.
        tokens: (rows,) their numbers are written here.
        stops: (rows,) where each row's buckets end.

    Returns:
        -1, or the first row that is no UTF-8.
    """
    blocks = np.zeros(64 * LANES, np.uint8)
    words, longs = blocks.view(np.uint32), blocks.view(np.uint64)
    w, state, v = np.zeros(64 * LANES, np.uint32), np.zeros(8 * LANES, np.uint32), np.zeros(8 * LANES, np.uint32)
    where, slots = np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)
    known = np.zeros(0 if fast else 2 * SLOT_WORDS * SLOTS, np.uint32)  # no n-gram has 0 for its first byte
    known_longs, known_ids = known.view(np.uint64), np.zeros(0 if fast else SLOTS, np.int32)
    hashes = np.zeros(n, np.uint64)
    pending, put = int64(0), 0  # not a literal 0, for which numba would compile what it is handed to once more
    for row in range(len(stops)):
        count = write_tokens(data, offsets[row], offsets[row + 1], table, text, starts, ends)
        if count < 0:
            return row
        tokens[row] = count
        for i in range(count):
            stop = ends[i + 1]
            h = uint64(0)
            for j in range((stop - starts[i]) // 8 + 1):
                h = (h ^ _padded(text, starts[i], stop - starts[i], j)) * STEP
                h = h ^ (h >> uint64(32))
            for order in range(n - 1, 0, -1):
                hashes[order] = hashes[order - 1] * BASE + h
            hashes[0] = h
            for order in range(min(n, i + 1)):
                mixed: Any = mix(hashes[order])
                start = starts[i - order]
                length = stop - start
                if fast:
                    ids[put] = ((mixed >> uint64(32)) * buckets) >> uint64(32)
                elif length > ONE_BLOCK:
                    if pending:
                        _flush(pending, words, w, state, v, where, powers, buckets, ids, slots, known, known_ids)
                        pending = int64(0)
                    _long(text, start, stop, blocks, words, w, state, v)
                    ids[put] = _bucket(state, int64(0), powers, buckets)
                else:
                    slot = -1
                    if length < 8 * SLOT_WORDS:
                        slot = int64(mixed & uint64(SLOTS - 1))
                        differ = uint64(0)
                        for j in range(SLOT_WORDS):
                            differ |= known_longs[SLOT_WORDS * slot + j] ^ _padded(text, start, length, j)
                        if differ == 0:
                            ids[put] = known_ids[slot]
                            put += 1
                            continue
                    for j in range(8):
                        longs[8 * pending + j] = _padded(text, start, length, j)
                    base = 64 * pending
                    blocks[base + 62] = 8 * length >> 8
                    blocks[base + 63] = 8 * length & 0xFF
                    slots[pending], where[pending] = slot, put
                    pending += 1
                    if pending == LANES:
                        _flush(pending, words, w, state, v, where, powers, buckets, ids, slots, known, known_ids)
                        pending = int64(0)
                put += 1
        stops[row] = put
    if pending:
        _flush(pending, words, w, state, v, where, powers, buckets, ids, slots, known, known_ids)
    return -1


@kernel
def add_counts(ids: Any, counts: Any) -> None:
    """Count buckets (k,) into `counts` (m,)."""
    for i in ids:
        counts[i] += 1


@kernel
def add_weights(ids: Any, stops: Any, weights: Any, out: Any) -> None:
    """Sums of the weights (t, m) of each row's buckets, into `out` (t, rows), in the order of the n-grams."""
    for t in range(len(weights)):
        first = 0
        for row in range(len(stops)):
            total = 0.0
            for i in range(first, stops[row]):
                total += weights[t, ids[i]]
            out[t, row] = total
            first = stops[row]
