"""Compiled halves of `crowds`: texts in the order of their minima, and the likely near-copies among neighbours."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from hf_prune.dedup._kernels import minima, sort_mixed
from hf_prune.dedup._link_kernels import root
from hf_prune.numerics.compiled import kernel

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]

_32, _LOW = np.uint64(32), np.uint64(0xFFFF_FFFF)
_SPREAD, _TOP, _ONE = np.uint64(0x9E37_79B1), np.uint64(31), np.uint64(1)
SAMPLE = 9
ROWS = 16  # texts at a time, so that columns are written in whole cache lines


@intrinsic
def _ones(context: Any, x: Any) -> Any:
    """Give the number of bits that are 1."""
    signature = types.uint64(types.uint64)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return signature, code


_count: Any = _ones


@kernel
def set_minima(chosen: I64, starts: I64, ends: I64, sets: U64, a: U32, b: U32, low: int, high: int, out: U32) -> None:
    """Minima of the sets chosen[low:high] under len(a) permutations, in columns low..high of `out` (len(a), n)."""
    block = np.empty((ROWS, len(a)), np.uint32)
    for first in range(low, high, ROWS):
        count = min(ROWS, high - first)
        for i in range(count):
            one = chosen[first + i]
            minima(sets[starts[one] : ends[one]], a, b, block[i])
        for p in range(len(a)):
            for i in range(count):
                out[p, first + i] = block[i, p]


@kernel
def sketch(columns: U32, bits: U64) -> None:
    """One bit of each minimum of `columns` (k, n), 64 to an integer of `bits` (n, k / 64)."""
    bits[:] = np.uint64(0)
    for p in range(len(columns)):
        word, place = p >> 6, np.uint64(p & 63)
        for i in range(columns.shape[1]):
            bits[i, word] |= (((np.uint64(columns[p, i]) * _SPREAD) >> _TOP) & _ONE) << place


@kernel
def arrange(columns: U32, sequence: I64, edges: I64, width: int, order: I64, leaf: I64) -> None:
    """Order the texts of each crowd by their minima, as far as groups of more than `width` are cut by that.

    A group is cut by the next minimum of the sequence: those with the value of most come first, in their order; the
    others by a hash of their value. Groups of `width` or less are cut no further.

    Args:
        columns: (k, n) minima.
        sequence: (s,) the minima that are looked at, in this order.
        edges: crowd c is edges[c]:edges[c + 1].
        width: largest number of texts of a group that is not cut.
        order: (n,) written: the texts.
        leaf: (n,) written: where the group of the text at each rank begins.
    """
    n = len(order)
    room = n // (width + 1) + 2
    begins, stops, depths = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
    rest, mixed, ends = np.empty(n, np.uint64), np.empty(n, np.uint64), np.empty(2 * n + 2, np.int64)
    for p in range(n):
        order[p] = p
    for crowd in range(len(edges) - 1):
        begins[0], stops[0], depths[0] = edges[crowd], edges[crowd + 1], 0
        waiting = 1
        while waiting:
            waiting -= 1
            begin, stop, depth = begins[waiting], stops[waiting], depths[waiting]
            while stop - begin > width and depth < len(sequence):
                values = columns[sequence[depth]]
                depth += 1
                most, seen = values[order[begin]], 0
                for k in range(SAMPLE):  # the value of most, probably
                    value, same = values[order[begin + k * (stop - begin) // SAMPLE]], 0
                    for m in range(SAMPLE):
                        same += values[order[begin + m * (stop - begin) // SAMPLE]] == value
                    if same > seen:
                        most, seen = value, same
                middle, others = begin, 0
                for p in range(begin, stop):
                    i = order[p]
                    if values[i] == most:
                        order[middle] = i
                        middle += 1
                    else:
                        rest[others] = (np.uint64(values[i]) * _SPREAD << _32) | np.uint64(i)
                        others += 1
                if others == 0:
                    continue
                sort_mixed(rest, others, mixed, ends)
                first = 0
                for p in range(others):
                    order[middle + p] = np.int64(mixed[p] & _LOW)
                    if p + 1 == others or mixed[p + 1] >> _32 != mixed[p] >> _32:
                        if p + 1 - first > width:
                            begins[waiting], stops[waiting], depths[waiting] = middle + first, middle + p + 1, depth
                            waiting += 1
                        else:
                            leaf[middle + first : middle + p + 1] = middle + first
                        first = p + 1
                stop = middle
            leaf[begin:stop] = begin


def arrange_plain(columns: U32, sequence: I64, edges: I64, width: int, order: I64, leaf: I64) -> None:
    """What `arrange` does, group by group in plain Python: the definition."""

    def cut(texts: list[int], depth: int, place: int) -> None:
        while len(texts) > width and depth < len(sequence):
            values = columns[sequence[depth]]
            depth += 1
            sample = [values[texts[k * len(texts) // SAMPLE]] for k in range(SAMPLE)]
            most = max(sample, key=lambda value: (sample.count(value), -sample.index(value)))
            mixed = {i: int(values[i]) * int(_SPREAD) % 2**32 for i in texts}
            rest = sorted((i for i in texts if values[i] != most), key=lambda i: (mixed[i], i))
            texts = [i for i in texts if values[i] == most]
            at = place + len(texts)
            for _, same in itertools.groupby(rest, key=lambda i: mixed[i]):
                group = list(same)
                cut(group, depth, at)
                at += len(group)
        order[place : place + len(texts)], leaf[place : place + len(texts)] = texts, place

    for begin, end in itertools.pairwise(edges.tolist()):
        cut(list(range(begin, end)), 0, begin)


@kernel
def likely(
    order: I64, leaf: I64, edges: I64, bits: U64, members: I64, parent: I64, tries: I32, bars: I64,
    width: int, beyond: int, nearest: I32, distance: I32, left: I64, right: I64, kinds: I64,
) -> int:  # fmt: skip
    """Propose pairs of texts that stand near to each other and are likely near-copies, and note who is nearest.

    Args:
        order: (n,) the texts, as `arrange` wrote them.
        leaf: (n,) where their groups begin, as it wrote them.
        edges: crowd c is edges[c]:edges[c + 1].
        bits: (n, w) sketches of 64 bits an integer; their distance is the number of bits in which they differ.
        members: (n,) the texts' indices among all texts.
        parent: forest of all texts: what is in one component is not proposed.
        tries: (n, 2) how often a text may still be measured in vain, with others of its group and with any.
        bars: (3,) largest distance of a pair of one group; of any, while there are tries; when there are none.
        width: how many texts of its group after it a text is held against.
        beyond: how many texts after it it is held against, of its group or not.
        nearest: (n, t) the nearest texts of each that were met, -1 for none; brought up to date.
        distance: (n, t) their distances, brought up to date.
        left: written: the first texts of pairs, at most len(left) // n for each text, the nearest.
        right: written: the second texts.
        kinds: written: 0 for pairs of one group, 1 for others.

    Returns:
        How many pairs were written.
    """
    n = len(order)
    most = len(left) // n
    roots = np.empty(n, np.int64)
    for i in range(n):
        roots[i] = root(parent, members[i])
    best, whose, kind_of = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    filled = 0
    for crowd in range(len(edges) - 1):
        for p in range(edges[crowd], edges[crowd + 1]):
            i, found = order[p], 0
            for q in range(p + 1, min(p + width, edges[crowd + 1])):
                grouped = leaf[q] == leaf[p]
                if not grouped and q > p + beyond:
                    break
                j = order[q]
                apart = np.int64(0)
                for word in range(bits.shape[1]):
                    apart += np.int64(_count(bits[i, word] ^ bits[j, word]))
                if apart < distance[i, -1]:
                    _note(j, apart, nearest[i], distance[i])
                if apart < distance[j, -1]:
                    _note(i, apart, nearest[j], distance[j])
                kind = 0 if grouped else 1
                bar = bars[kind] if tries[i, kind] > 0 or tries[j, kind] > 0 else bars[2]
                if apart <= bar and roots[i] != roots[j] and (found < most or apart < best[most - 1]):
                    at = min(found, most - 1)
                    while at > 0 and best[at - 1] > apart:
                        best[at], whose[at], kind_of[at] = best[at - 1], whose[at - 1], kind_of[at - 1]
                        at -= 1
                    best[at], whose[at], kind_of[at] = apart, j, kind
                    found = min(found + 1, most)
            for k in range(found):
                left[filled], right[filled], kinds[filled] = i, whose[k], kind_of[k]
                filled += 1
    return filled


@kernel
def _note(j: Any, apart: Any, nearest: I32, distance: I32) -> None:
    """Put a text among the nearest of another, unless it is there."""
    at = len(nearest) - 1
    for k in range(len(nearest)):
        if nearest[k] == j:
            return
    while at > 0 and distance[at - 1] > apart:
        nearest[at], distance[at] = nearest[at - 1], distance[at - 1]
        at -= 1
    nearest[at], distance[at] = j, apart


def likely_plain(
    order: I64, leaf: I64, edges: I64, bits: U64, roots: I64, tries: I32, bars: I64, width: int, beyond: int, most: int
) -> tuple[list[tuple[int, int, int]], dict[int, set[tuple[int, int]]]]:
    """What `likely` proposes, and what each text was held against (distance, other), in plain Python: the definition.

    Args:
        order: (n,) the texts.
        leaf: (n,) where their groups begin.
        edges: crowd c is edges[c]:edges[c + 1].
        bits: (n, w) sketches.
        roots: (n,) component of each text.
        tries: (n, 2) as there.
        bars: (3,) as there.
        width: as there.
        beyond: as there.
        most: largest number of pairs that a text proposes.
    """
    pairs, met = [], {int(i): set[tuple[int, int]]() for i in order}
    for begin, end in itertools.pairwise(edges.tolist()):
        for p in range(begin, end):
            i, found = int(order[p]), []
            for q in range(p + 1, min(p + width, end)):
                j, kind = int(order[q]), int(leaf[q] != leaf[p])
                if kind and q > p + beyond:
                    break
                apart = sum(int(x).bit_count() for x in bits[i] ^ bits[j])
                met[i].add((apart, j))
                met[j].add((apart, i))
                bar = bars[kind] if max(tries[i, kind], tries[j, kind]) > 0 else bars[2]
                if apart <= bar and roots[i] != roots[j]:
                    found.append((apart, q, j, kind))
            pairs += [(i, j, kind) for _, _, j, kind in sorted(found)[:most]]
    return pairs, met


@kernel
def spend(left: I64, right: I64, kinds: I64, near: NDArray[np.bool_], tries: I32) -> None:
    """Count the pairs that were measured in vain."""
    for p in range(len(near)):
        if not near[p]:
            for one in (left[p], right[p]):
                tries[one, kinds[p]] = max(0, tries[one, kinds[p]] - 1)
