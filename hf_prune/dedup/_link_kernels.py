"""Compiled passes over pairs of texts: which share a band, how similar they are, and what hangs together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_prune.numerics.compiled import inlined, kernel

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]


@kernel
def in_common(x: U64, i: int, stop_i: int, y: U64, j: int, stop_j: int) -> int:
    """How many numbers the ascending sets x[i:stop_i] and y[j:stop_j] have in common."""
    common = 0
    while i < stop_i and j < stop_j:
        u, v = x[i], y[j]
        common += u == v
        i += u <= v
        j += v <= u
    return common


@inlined
def share(common: int, total: int) -> float:
    """Jaccard similarity of sets with so many numbers in common and in all; 0 of two empty ones."""
    return common / (total - common) if total > common else 0.0


@kernel
def jaccards(
    left: I64, right: I64, starts_a: I64, ends_a: I64, sets_a: U64, starts_b: I64, ends_b: I64, sets_b: U64,
    low: int, high: int, out: NDArray[np.float64],
) -> None:  # fmt: skip
    """Jaccard similarity of set left[p] of the first collection and set right[p] of the second."""
    for p in range(low, high, 2):
        i, stop_i, j, stop_j = starts_a[left[p]], ends_a[left[p]], starts_b[right[p]], ends_b[right[p]]
        total, common = stop_i - i + stop_j - j, 0
        if p + 1 < high:  # two at a time: each step waits for the one before, and the processor does both at once
            q = p + 1
            k, stop_k, m, stop_m = starts_a[left[q]], ends_a[left[q]], starts_b[right[q]], ends_b[right[q]]
            other_total, other = stop_k - k + stop_m - m, 0
            while i < stop_i and j < stop_j and k < stop_k and m < stop_m:
                u, v, w, z = sets_a[i], sets_b[j], sets_a[k], sets_b[m]
                common += u == v
                i += u <= v
                j += v <= u
                other += w == z
                k += w <= z
                m += z <= w
            out[q] = share(other + in_common(sets_a, k, stop_k, sets_b, m, stop_m), other_total)
        out[p] = share(common + in_common(sets_a, i, stop_i, sets_b, j, stop_j), total)


def jaccard_plain(x: set[Any], y: set[Any]) -> float:
    """Jaccard similarity |x and y| / |x or y|; 0 of two empty sets.

    >>> jaccard_plain({1, 2, 3}, {2, 3, 4})
    0.5
    """
    return len(x & y) / len(x | y) if x or y else 0.0


@kernel
def compare(
    keys: U64, starts: I64, ends: I64, sets: U64, copy: I64, band_keys: U64, band_texts: I64, known_starts: I64,
    known_ends: I64, known_sets: U64, copies: I64, accept: float, low: int, high: int,
    nearest: NDArray[np.float64], whose: I64, count: I64,
) -> None:  # fmt: skip
    """Compare texts low..high with all known ones that share a band: see `neighbors.Reference.compare`."""
    met = np.full(len(copies), -1, np.int64)
    for row in range(low, high):
        if copy[row] >= 0:
            nearest[row], whose[row], count[row] = 1.0, copy[row], copies[copy[row]]
            met[copy[row]] = row
        size = ends[row] - starts[row]
        for band in range(len(band_keys) if size else 0):
            key = keys[row, band]
            place = np.searchsorted(band_keys[band], key)
            while place < band_keys.shape[1] and band_keys[band, place] == key:
                text = band_texts[band, place]
                place += 1
                if met[text] == row:
                    continue
                met[text] = row
                if accept < 0:
                    count[row] += copies[text]
                other = known_ends[text] - known_starts[text]
                most = min(size, other) / max(size, other)  # sets of these sizes can have no more
                if most < nearest[row] and (accept < 0 or most < accept):
                    continue
                first, last = known_starts[text], known_ends[text]
                jaccard = share(in_common(sets, starts[row], ends[row], known_sets, first, last), size + other)
                if accept >= 0 and jaccard >= accept:
                    count[row] += copies[text]
                if jaccard > nearest[row] or (jaccard == nearest[row] and (whose[row] < 0 or text < whose[row])):
                    nearest[row], whose[row] = jaccard, text


@kernel
def agreements(left: I64, right: I64, signatures: U32, low: int, high: int, out: NDArray[np.float64]) -> None:
    """Share of equal minima, the estimate of Jaccard similarity."""
    k = signatures.shape[1]
    for p in range(low, high):
        x, y = signatures[left[p]], signatures[right[p]]
        same = 0
        for i in range(k):
            same += x[i] == y[i]
        out[p] = same / k


@kernel
def root(parent: I64, node: int) -> int:
    """The lowest node of a component; paths are halved on the way."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@kernel
def propose(
    order: I64, keys: U64, band: int, most: int, chained: bool, first: int, second: int,
    crowded: NDArray[np.bool_], crowd: I64, left: I64, right: I64,
) -> tuple[int, int, int]:  # fmt: skip
    """Pairs whose keys of a band are equal, and were not compared in an earlier one, from rank (first, second) on.

    Args:
        order: texts that share their key of the band with another, those with equal keys side by side and ascending.
        keys: (m, bands) keys of the texts' bands.
        band: index of the band.
        most: number of texts of one key above which no pairs are written: they are a crowd.
        chained: write the pairs of a crowd's texts that follow each other.
        first: rank of the first text of the pair to go on with, 0 at the beginning.
        second: rank of the second, 1 at the beginning.
        crowded: (m, bands), brought up to date: whether a text shares its key with a crowd.
        crowd: (m,) forest of texts that are in one crowd, or in crowds that overlap; brought up to date.
        left: written: the first texts of pairs.
        right: written: the second texts.

    Returns:
        How many pairs were written, and where to go on: first == len(order) at the end.
    """
    filled, m = 0, len(order)
    while first < m:
        i = order[first]
        if second == first + 1:
            if first == 0 or keys[order[first - 1], band] != keys[i, band]:
                end = first
                while end < m and keys[order[end], band] == keys[i, band]:
                    end += 1
                if end - first > most:
                    one = root(crowd, i)
                    for place in range(first, end):
                        crowded[order[place], band] = True
                        other = root(crowd, order[place])
                        crowd[max(one, other)] = min(one, other)
                        one = min(one, other)
        reach = most
        if crowded[i, band]:
            reach = 1 if chained else 0
        while second < m and second <= first + reach and keys[order[second], band] == keys[i, band]:
            if filled == len(left):
                return filled, first, second
            j = order[second]
            second += 1
            fresh = True
            for earlier in range(band):
                if keys[i, earlier] == keys[j, earlier] and not crowded[i, earlier]:
                    fresh = False
                    break
            if fresh:
                left[filled], right[filled] = i, j
                filled += 1
        first += 1
        second = first + 1
    return filled, first, second


@kernel
def join(left: I64, right: I64, accepted: NDArray[np.bool_], parent: I64, size: I64, cap: int) -> int:
    """Unite the ends of accepted edges, the lowest node as root, unless more than `cap` come together; how many not."""
    refused = 0
    for p in range(len(left)):
        if accepted[p]:
            i, j = root(parent, left[p]), root(parent, right[p])
            if i != j:
                if cap > 0 and size[i] + size[j] > cap:
                    refused += 1
                    continue
                low, high = min(i, j), max(i, j)
                parent[high] = low
                size[low] += size[high]
    return refused


def components_plain(n: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The lowest node of each node's component, which `join` makes its root.

    >>> components_plain(6, [(4, 5), (1, 3), (3, 4)])
    [0, 1, 2, 1, 1, 1]
    """
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i, j in edges:
        a, b = root(i), root(j)
        parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(n)]
