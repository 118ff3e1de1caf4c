"""Which rows stay: the rules of `prune` as functions of arrays.

Every preference becomes a badness, smaller = kept sooner; ties in badness are decided by a hash, asked for
only where a tie crosses the cut. Hashes are functions of local positions: `hashes(idx) -> uint64`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hf_prune.checks import warn
from hf_prune.prune.rule import Rule

Index = NDArray[np.int64]
Mask = NDArray[np.bool_]
Hashes = Callable[[Index], NDArray[np.uint64]]


class TieWarning(UserWarning):
    """The cut falls among rows of equal score; a seeded hash decided which of them stay."""


class ShortWarning(UserWarning):
    """Fewer rows than asked for could be kept."""


class Pick(NamedTuple):
    """Rows picked, how many rows tie at the cut, and how many of those were kept."""

    mask: Mask
    tied: int = 0
    kept: int = 0


def codes_of(columns: list[pa.ChunkedArray]) -> Index:
    """Groups (n,) numbered from 0, of one column or of several together; null is a group of its own.

    >>> codes_of([pa.chunked_array([["a", None, "b", "a"]])]).tolist()
    [0, 1, 2, 0]
    """
    codes: Index | None = None
    for column in columns:
        if pa.types.is_nested(column.type):
            raise TypeError(f"groups cannot be of type {column.type}; use a column of labels, ids or strings")
        if column.null_count == len(column):
            here = np.zeros(len(column), np.int64)
        else:
            encoded = pc.dictionary_encode(column, null_encoding="encode").combine_chunks()
            encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
            here = np.asarray(encoded.indices.to_numpy(zero_copy_only=False)).astype(np.int64)
        if codes is None:
            codes = here
        else:
            pairs = pa.chunked_array([pa.array(codes * (int(here.max(initial=0)) + 1) + here)])
            codes = codes_of([pairs])
    assert codes is not None
    return codes


def oriented(scores: NDArray[Any], prefer: str) -> NDArray[Any]:
    """Badness (n,) of "high" or "low", exact for integers: ~x turns the order of ints without overflow."""
    if prefer == "low":
        return scores
    return ~scores if scores.dtype.kind in "iu" else -scores


def middle(scores: NDArray[Any], hashes: Hashes) -> Index:
    """Badness (m,) by distance from the middle rank, the higher-scored of two equally far rows first.

    Ranks are by score, ties by hash, so that the best k are k ranks in a row around the median.

    >>> middle(np.array([10, 20, 30, 40]), lambda i: i.astype(np.uint64)).tolist()
    [6, 2, 1, 5]
    """
    m = len(scores)
    rank = np.empty(m, np.int64)
    rank[np.lexsort((hashes(np.arange(m)), scores))] = np.arange(m)
    off = 2 * rank - (m - 1)
    return 2 * np.abs(off) - (off > 0)


def best(badness: NDArray[Any], k: int, hashes: Hashes) -> Pick:
    """The k smallest of `badness` (m,); ties at the cut by the smallest hash. O(m), hashes only ties."""
    m = len(badness)
    if k >= m or k == 0:
        return Pick(np.full(m, k > 0))
    cut = np.partition(badness, k - 1)[k - 1]
    mask = badness < cut
    tied = np.flatnonzero(badness == cut)
    need = k - int(np.count_nonzero(mask))
    if need == len(tied):
        mask[tied] = True
        return Pick(mask)
    mask[tied[np.argsort(hashes(tied), kind="stable")[:need]]] = True
    return Pick(mask, len(tied), need)


def buy(badness: NDArray[Any], cost: NDArray[Any], limit: Any, hashes: Hashes) -> Pick:
    """The longest prefix of the rows (m,), best first, whose cost stays within `limit`; ties by hash.

    It ends at the first row that does not fit, so a larger limit buys all that a smaller one buys.
    """
    m = len(badness)
    # within a tie by cost, so that the sums do not depend on the order of the rows
    order = np.lexsort((cost, badness))
    spent = np.cumsum(cost[order])
    bought = int(np.searchsorted(spent > limit, True))
    mask = np.zeros(m, bool)
    if bought == m:
        mask[:] = True
        return Pick(mask)
    tied = np.flatnonzero(badness == badness[order[bought]])
    sure = int(np.count_nonzero(badness < badness[order[bought]]))
    mask[order[:sure]] = True
    if len(tied) == 1:
        return Pick(mask)
    tied = tied[np.argsort(hashes(tied), kind="stable")]
    base = spent[sure - 1] if sure else cost.dtype.type(0)
    taken = int(np.searchsorted(base + np.cumsum(cost[tied]) > limit, True))
    mask[tied[:taken]] = True
    return Pick(mask, len(tied), taken)


def fill(codes: Index, floors: list[Any], total: Any, pick: Callable[[Index, Any], Pick], spent: Any) -> Pick:
    """First each group's floor with the group's own best, then the rest of `total` with the best left.

    Args:
        codes: (m,) group of each row, from 0.
        floors: what each group may take at first; the sum is at most `total`.
        total: rows or cost in all.
        pick: (positions, amount) -> the best of these rows for this amount.
        spent: mask (m,) -> what the rows in it used up, in the unit of `total`.
    """
    mask = np.zeros(len(codes), bool)
    tied = kept = 0
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(floors) + 1))
    for group, floor in enumerate(floors):
        rows = order[bounds[group] : bounds[group + 1]]
        if floor and len(rows):
            own = pick(rows, floor)
            mask[rows[own.mask]] = True
            tied, kept = tied + own.tied, kept + own.kept
    rest = np.flatnonzero(~mask)
    last = pick(rest, total - spent(mask))
    mask[rest[last.mask]] = True
    return Pick(mask, tied + last.tied, kept + last.kept)


def count_floors(k: int, n: int, sizes: Index, beta: Fraction) -> list[int]:
    """floor(beta * k/n * size) of each group, in integers: in floats 22 * (15/22) gives 14.

    >>> count_floors(15, 22, np.array([22]), Fraction(1))
    [15]
    """
    return [(k * size * beta.numerator) // (n * beta.denominator) for size in sizes.tolist()]


def one_each(badness: NDArray[Any], clusters: Index, hashes: Hashes) -> Mask:
    """The best row of each cluster, (m,); ties by hash."""
    top = np.full(int(clusters.max(initial=-1)) + 1, 0, np.int64)
    order = np.lexsort((badness, clusters))
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    top[clusters[order[starts]]] = order[starts]
    tied = badness == badness[top[clusters]]
    rows = np.flatnonzero(tied)
    several = np.bincount(clusters[rows], minlength=len(top))[clusters[rows]] > 1
    mask = np.zeros(len(badness), bool)
    mask[rows[~several]] = True
    rows = rows[several]
    order = rows[np.lexsort((hashes(rows), clusters[rows]))]
    mask[order[np.flatnonzero(np.diff(clusters[order], prepend=-1))]] = True
    return mask


def passes(scores: NDArray[Any], threshold: float | int, prefer: str) -> Mask:
    """Score >= threshold (<= for "low"), in the scores' own type: float32 columns meet the float32 0.7."""
    if scores.dtype.kind in "iu" and isinstance(threshold, float) and math.isfinite(threshold):
        # compare ints with an int: numpy would send both through float64
        threshold = math.floor(threshold) if prefer == "low" else math.ceil(threshold)
    return np.asarray(scores <= threshold if prefer == "low" else scores >= threshold)


def select(
    scores: NDArray[Any],
    null: Mask,
    rule: Rule,
    hashes: Hashes,
    *,
    cost: NDArray[Any] | None = None,
    groups: Index | None = None,
    clusters: Index | None = None,
) -> Mask:
    """Rows to keep, (n,): the whole of `filter_by_score` on arrays.

    Args:
        scores: (n,) numbers; ignored where `null`.
        null: (n,) rows without a score.
        rule: what to keep.
        hashes: positions -> uint64, the order among ties and under prefer="random".
        cost: (n,) with a budget.
        groups: (n,) from 0, with a floor.
        clusters: (n,) from 0; at most one row of each is kept.
    """
    forced = null if rule.nulls == "keep" else np.zeros(len(scores), bool)
    rows = np.flatnonzero(~null)
    if rule.threshold is not None:
        rows = rows[passes(scores[rows], rule.threshold, rule.prefer)]

    def badness(at: Index) -> NDArray[Any]:
        if rule.prefer == "random":
            return hashes(at)
        if rule.prefer == "middle":
            return middle(scores[at], lambda i: hashes(at[i]))
        return oriented(scores[at], rule.prefer)

    if clusters is not None and len(rows):
        rows = rows[one_each(badness(rows), codes_from(clusters[rows]), lambda i: hashes(rows[i]))]
    if rule.offset:
        rows = rows[~best_of(_ranked(badness, hashes), rows, rule.skipped(len(scores)), rule, groups, len(scores))]
    if rule.threshold is not None:
        chosen = Pick(np.ones(len(rows), bool))
    elif rule.budget is not None:
        assert cost is not None
        chosen = _spend(badness, rows, rule, hashes, cost, groups, forced)
    else:
        chosen = choose(_ranked(badness, hashes), rows, rule, forced, groups)
    if rule.prefer == "middle":
        chosen = Pick(chosen.mask, *edge_ties(scores[rows], chosen.mask))
    warn_ties(chosen)
    keep = forced.copy()
    keep[rows[chosen.mask]] = True
    return keep


def codes_from(values: Index) -> Index:
    """Integers renumbered from 0 without gaps."""
    return codes_of([pa.chunked_array([pa.array(values)])]) if len(values) else values


def _ranked(badness: Callable[[Index], NDArray[Any]], hashes: Hashes) -> Callable[[Index, int], Pick]:
    return lambda at, k: best(badness(at), k, lambda i: hashes(at[i]))


def choose(pick: Callable[[Index, int], Pick], rows: Index, rule: Rule, forced: Mask, groups: Index | None) -> Pick:
    """Pick the rule's count out of `rows` (m,), floors first; `forced` (n,) rows count as kept."""
    n, held = len(forced), int(np.count_nonzero(forced))
    k = rule.count(n)
    if held > k:
        raise ValueError(f"nulls='keep': {held} rows without score are more than the {k} to keep; use 'drop'")
    left = min(k - held, len(rows))
    if left < k - held and rule.keep != 1:  # keep=1.0 is said by who wants all that one_per and nulls leave
        warn(f"only {left + held} of the {k} rows asked for can be kept; all of them are", ShortWarning)
    if groups is None or rule.floor is None:
        return pick(rows, left)
    sizes = np.bincount(groups)
    floors = count_floors(k, n, sizes, rule.floor)
    has = np.bincount(groups[rows], minlength=len(sizes)).tolist()
    free = np.bincount(groups[forced], minlength=len(sizes)).tolist()
    floors = [min(max(0, f - a), h) for f, a, h in zip(floors, free, has, strict=True)]
    if sum(floors) > left:
        raise ValueError(
            f"nulls='keep': the {held} rows without a score leave {left} places, but the floors of the groups"
            f" need {sum(floors)}; use nulls='drop' or a smaller group_floor"
        )
    return fill(groups[rows], floors, left, lambda i, f: pick(rows[i], f), np.count_nonzero)


def best_of(pick: Callable[[Index, int], Pick], rows: Index, d: int, rule: Rule, groups: Index | None, n: int) -> Mask:
    """The best `d` of `rows` (m,), out of n, each group's share first as in `choose`: those to be passed over."""
    if d == 0:
        return np.zeros(len(rows), bool)
    skip = replace(rule, keep=None, budget=None, cost=None, rows=d, offset=0.0)
    chosen = choose(pick, rows, skip, np.zeros(n, bool), groups)
    warn_ties(chosen)
    return chosen.mask


def _spend(
    badness: Callable[[Index], NDArray[Any]],
    rows: Index,
    rule: Rule,
    hashes: Hashes,
    cost: NDArray[Any],
    groups: Index | None,
    forced: Mask,
) -> Pick:
    """Pick what the budget buys; a group's floor is its share of the whole cost, in cost units."""
    assert rule.budget is not None
    whole = cost.dtype.kind in "iu"

    def total(values: NDArray[Any]) -> Any:
        return int(values.sum()) if whole else math.fsum(values.tolist())

    left = rule.budget - total(cost[forced])
    if left < 0:
        raise ValueError(f"nulls='keep': the rows without score cost more than {rule.budget}; use nulls='drop'")

    def pick(at: Index, limit: Any) -> Pick:
        return buy(badness(at), cost[at], limit, lambda i: hashes(at[i]))

    if groups is None or rule.floor is None:
        chosen = pick(rows, left)
    else:
        order = np.argsort(groups, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
        share = rule.floor * Fraction(left) / (Fraction(total(cost)) or 1)
        limits = [share * Fraction(total(cost[part])) for part in parts]
        floors = [math.floor(limit) if whole else float(limit) for limit in limits]
        price = cost[rows]
        chosen = fill(groups[rows], floors, left, lambda i, f: pick(rows[i], f), lambda m: total(price[m]))
    if not chosen.mask.any() and not forced.any():
        cheapest = cost[rows].min() if len(rows) else 0
        raise ValueError(
            f"budget={rule.budget} does not buy the best row; use more (the cheapest row costs {cheapest})"
        )
    return chosen


def edge_ties(scores: NDArray[Any], mask: Mask) -> tuple[int, int]:
    """How many rows share an edge score of which only some are kept, and how many of those are kept."""
    if not mask.any() or mask.all():
        return 0, 0
    tied = kept = 0
    for edge in {scores[mask].min(), scores[mask].max()}:
        here = scores == edge
        if not mask[here].all():
            tied, kept = tied + int(here.sum()), kept + int(mask[here].sum())
    return tied, kept


def warn_ties(chosen: Pick) -> None:
    """Say how many rows tie at the cut, where a tie crosses it."""
    if chosen.tied:
        many = f"{chosen.tied} rows tie at the cut and {chosen.kept} of them are kept"
        warn(f"{many}, chosen by a seeded hash", TieWarning)
