"""Greedy selection of rows that are good and unlike each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_dataset
from hf_prune.data import arrow
from hf_prune.numerics import kmeans


def select_diverse(
    ds: Any,
    k: int,
    score: str = "t2v_alignment",
    embedding: str = "embedding",
    *,
    diversity: float = 0.5,
    pool: int | None = None,
) -> NDArray[np.int64]:
    """Choose rows one by one: high score, and far from those that are chosen (maximal marginal relevance).

    Each step takes the row of the largest `(1 - diversity) rank - diversity max cos`: `rank` is the score's place among
    all rows, from 0 to 1, so that its scale does not matter; `max cos` is the largest cosine to a chosen row. Ties
    go to the earlier row. Costs `2 k n d` operations.

    Args:
        ds: `Dataset` with both columns.
        k: rows to choose.
        score: column, high = keep.
        embedding: column of vectors.
        diversity: 0: by score alone; 1: by distance alone.
        pool: look at this many rows of the highest score only (k or more; ranks stay those among all); None: at all.

    Returns:
        (k,) row numbers in the order of choice: a prefix is the choice of fewer rows. `ds.select(sorted(...))`.

    Raises:
        ValueError: more rows asked for than have a score or are in the pool, `diversity` not from 0 to 1, a vector that
            is not finite.

    Reference: Carbonell and Goldstein, 1998.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"t2v_alignment": [3.0, 2.9, 1.0], "embedding": [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]})
    >>> select_diverse(ds, 2).tolist(), select_diverse(ds, 2, diversity=0).tolist()
    ([0, 2], [0, 1])
    """
    if not 0 <= diversity <= 1:
        raise ValueError(f"diversity={diversity} is no share; give 0 (score alone) to 1 (distance alone)")
    check_dataset(ds, "select_diverse")
    for name, value in (("k", k), ("pool", pool)):
        if value is not None and (isinstance(value, bool) or int(value) != value or value < 1):
            raise ValueError(f"{name}={value!r} is no number of rows; give 1 or more")
    if pool is not None and pool < k:
        raise ValueError(f"pool={pool} rows are looked at, fewer than the k={k} to choose; give a pool of k or more")
    scores = arrow.floats_column(ds, score)
    there = np.flatnonzero(~np.isnan(scores))
    if k > len(there):
        raise ValueError(f"k={k}, but {len(there)} rows can be chosen from (NaN scores are never kept)")
    ranks = _ranks(scores[there])
    best = np.argsort(-ranks, kind="stable")[:pool]
    order = there[best]
    x = arrow.matrix_column(ds, embedding, order)
    bad = ~np.isfinite(x).all(1)
    if bad.any():
        raise ValueError(
            f"column {embedding!r} has numbers that are not finite in row {order[bad].min()}, of {bad.sum()} such rows "
            f"that have a {score!r}; embed them again, or drop such rows first"
        )
    return order[greedy(ranks[best], kmeans.unit_rows(_near_one(x)), int(k), diversity)]


def _near_one(x: NDArray[Any]) -> NDArray[np.float32]:
    """Rows (n, d) times powers of two that make their largest number 0.5 to 1: exact, whatever their size."""
    wide = np.asarray(x, np.float64)
    exponents = np.frexp(np.abs(wide).max(1, initial=0))[1]
    return np.asarray(np.ldexp(wide, -exponents[:, None]), np.float32)


def greedy(values: NDArray[np.float64], x: NDArray[np.float32], k: int, diversity: float) -> NDArray[np.int64]:
    """Maximal marginal relevance among (n, d) unit rows with values (n,)."""
    near = np.full(len(x), -1.0, np.float32)  # to nothing yet: all alike
    left = np.ones(len(x), bool)
    chosen = np.empty(k, np.int64)
    for step in range(k):
        gain = np.where(left, (1 - diversity) * values - diversity * near, -np.inf)
        chosen[step] = gain.argmax()
        left[chosen[step]] = False
        np.maximum(near, x @ x[chosen[step]], out=near)
    return chosen


def _ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places from 0 to 1, equal for equal scores."""
    values, place = np.unique(scores, return_inverse=True)
    return place / max(len(values) - 1, 1)
