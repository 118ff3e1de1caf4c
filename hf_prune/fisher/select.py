"""Greedy selection of rows that are good and unlike each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_prune import _arrow, kmeans
from hf_prune.checks import check_dataset


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
        pool: look at this many rows of the highest score only; None: at all.

    Returns:
        (k,) row numbers in the order of choice: a prefix is the choice of fewer rows. `ds.select(sorted(...))`.

    Raises:
        ValueError: more rows asked for than have a score, `diversity` not from 0 to 1.

    Reference: Carbonell and Goldstein, 1998.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"t2v_alignment": [3.0, 2.9, 1.0], "embedding": [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]})
    >>> select_diverse(ds, 2).tolist(), select_diverse(ds, 2, diversity=0).tolist()
    ([0, 2], [0, 1])
    """
    if not 0 <= diversity <= 1:
        raise ValueError(f"diversity={diversity} is no share; give 0 (score alone) to 1 (distance alone)")
    check_dataset(ds, "select_diverse")
    scores = _arrow.floats_column(ds, score)
    there = np.flatnonzero(~np.isnan(scores))
    limit = len(there) if pool is None else min(pool, len(there))
    if isinstance(k, bool) or not 0 < k <= limit:
        raise ValueError(f"k={k}, but {limit} rows can be chosen from (NaN scores are never kept)")
    order = there[np.argsort(-scores[there], kind="stable")][:limit]
    x = kmeans.unit_rows(np.asarray(_arrow.matrix_column(ds, embedding, order), np.float32))
    return order[greedy(_ranks(scores[order]), x, k, diversity)]


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
