"""How `sample_by_score` draws, one function a method: (scores (m,), u (m,) in (0, 1), k) -> mask (m,)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_prune.data.types import Method
from hf_prune.prune.select import Mask, best

Floats = NDArray[np.float64]
Draw = Callable[[Floats, Floats, int], Mask]


def gumbel(scores: Floats, u: Floats, k: int) -> Mask:
    """The k largest of score + Gumbel noise: k draws without replacement where the score is a log-weight.

    Raises:
        ValueError: fewer than k rows have a weight above 0 (a score above -inf).
    Reference: Kool, van Hoof and Welling, 2019, section 2; the selection step of DSIR.

    >>> gumbel(np.array([0.0, 100.0]), np.array([0.5, 0.5]), 1).tolist()
    [False, True]
    """
    return _smallest(np.log(-np.log(u)) - scores, u, k, "a score above -inf")


def proportional(scores: Floats, u: Floats, k: int) -> Mask:
    """K draws without replacement with probability proportional to the score, by exponential races.

    Raises:
        ValueError: a score is negative or infinite, or fewer than k are above 0.
    Reference: Efraimidis and Spirakis, 2006.

    >>> proportional(np.array([0.0, 2.0]), np.array([0.9, 0.1]), 1).tolist()
    [False, True]
    """
    wrong = ~((scores >= 0) & (scores < np.inf))
    if wrong.any():
        raise ValueError(
            f"method='proportional' needs finite scores >= 0, and {int(wrong.sum())} are not (one is"
            f" {scores[wrong][0]}); shift them, or use method='gumbel' for log-weights"
        )
    arrival = np.full(len(scores), np.inf)
    np.divide(-np.log(u), scores, out=arrival, where=scores > 0)
    return _smallest(arrival, u, k, "a score above 0")


def ccs(scores: Floats, u: Floats, k: int, strata: int = 50) -> Mask:
    """K rows spread over strata of equal width between the smallest and the largest score, drawn evenly in each.

    Strata are visited from the fewest rows to the most (of two alike, the lower first); with r strata left, one gives
    its rows, or `rest // r` of them if it has more. So thin strata are kept whole, and what they cannot give goes to
    the others.

    Raises:
        ValueError: a score is infinite.
    Reference: Zheng, Liu, Lai and Prakash, 2023, arXiv 2210.15809; the last stratum is closed here.

    >>> scores = np.array([0, 0.1, 0.15, 0.2, 0.3, 0.35, 0.5, 0.55, 0.9, 1])
    >>> np.flatnonzero(ccs(scores, np.linspace(0.01, 0.99, 10), 6, strata=4)).tolist()
    [0, 1, 4, 6, 8, 9]
    """
    if not np.isfinite(scores).all():
        wrong = scores[~np.isfinite(scores)]
        raise ValueError(
            f"method='ccs' divides the range of the scores, and {len(wrong)} are infinite (one is {wrong[0]}); replace"
            " them by a finite score"
        )
    if not len(scores):
        return np.zeros(0, bool)
    edges = np.linspace(scores.min(), scores.max(), strata + 1)
    stratum = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, strata - 1)
    counts = np.bincount(stratum, minlength=strata)
    budget, rest = np.zeros(strata, np.int64), k
    for left, here in zip(range(strata, 0, -1), np.argsort(counts, kind="stable"), strict=True):
        budget[here] = min(counts[here], rest // left)
        rest -= budget[here]
    order = np.lexsort((u, stratum))
    starts = np.cumsum(counts) - counts
    mask = np.zeros(len(scores), bool)
    mask[order] = np.arange(len(scores)) - starts[stratum[order]] < budget[stratum[order]]
    return mask


def _smallest(badness: Floats, u: Floats, k: int, what: str) -> Mask:
    able = int(np.count_nonzero(badness < np.inf))
    if able < k:
        use = f"use rows={able} or fewer" if able else "choose another score or method"
        raise ValueError(f"only {able} rows have {what}, and {k} are wanted; {use}")

    def hashes(at: Any) -> Any:
        return u[at]

    return best(badness, k, hashes).mask


METHODS: dict[Method, Draw] = {"gumbel": gumbel, "proportional": proportional, "ccs": ccs}
