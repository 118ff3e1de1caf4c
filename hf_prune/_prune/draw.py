"""Methods of `sample_by_score`, one function each: (scores (m,), u (m,) in (0, 1), k) -> mask (m,)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_prune._prune.select import Mask, best

Floats = NDArray[np.float64]
Method = Callable[[Floats, Floats, int], Mask]


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


def _smallest(badness: Floats, u: Floats, k: int, what: str) -> Mask:
    able = int(np.count_nonzero(badness < np.inf))
    if able < k:
        raise ValueError(f"only {able} rows have {what}, and {k} are wanted; use rows={able} or fewer")

    def hashes(at: Any) -> Any:
        return u[at]

    return best(badness, k, hashes).mask


METHODS: dict[str, Method] = {"gumbel": gumbel, "proportional": proportional}
