"""Greedy selection of rows that are good and unlike each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_count, check_dataset, check_number
from hf_prune.data import arrow
from hf_prune.numerics import kmeans

if TYPE_CHECKING:
    from datasets import Dataset


def select_diverse(
    ds: Dataset,
    rows: int,
    *,
    score: str = "t2v_alignment",
    embedding: str = "embedding",
    diversity: float = 0.5,
    pool: int | None = None,
) -> NDArray[np.int64]:
    """Choose rows one by one: high score, and far from those that are chosen (maximal marginal relevance).

    With S the rows chosen so far and r(x) the rank of the score of x among all rows, scaled to 0 ... 1, so that the
    score's scale does not matter, the next one is

        argmax_{x not in S} (1 - diversity) r(x) - diversity max_{s in S} cos(x, s)

    Ties go to the earlier row. Costs `2 rows n d` operations.

    Args:
        ds: `Dataset` with both columns.
        rows: number of rows to choose.
        score: score column, high = keep.
        embedding: column of vectors.
        diversity: weight of the distance, 0 (score alone) to 1 (distance alone).
        pool: number of rows of the highest score that are looked at, `rows` or more (ranks stay those among all); None:
            all.

    Returns:
        (rows,) int64 indices in the order of choice: a prefix is the choice of fewer rows. `ds.select(sorted(...))`.

    Raises:
        ValueError: more rows asked for than have a score or are in the pool, `diversity` not from 0 to 1, a vector that
            is not finite.

    Reference: Carbonell and Goldstein, 1998.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"t2v_alignment": [3.0, 2.9, 1.0], "embedding": [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]})
    >>> select_diverse(ds, 2).tolist(), select_diverse(ds, 2, diversity=0).tolist()
    ([0, 2], [0, 1])
    """
    check_number("diversity", diversity, 0, 1)
    check_dataset(ds, "select_diverse")
    check_count("rows", rows)
    check_count("pool", pool, optional=True)
    if pool is not None and pool < rows:
        raise ValueError(f"pool={pool} is fewer than the rows={rows} to choose from it; give a pool of {rows} or more")
    scores = arrow.floats_column(ds, score)
    there = np.flatnonzero(~np.isnan(scores))
    if rows > len(there):
        raise ValueError(f"rows={rows}, but {len(there)} rows can be chosen from (NaN scores are never kept)")
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
    return order[greedy(ranks[best], kmeans.unit_rows(_near_one(x)), rows, diversity=diversity)]


def _near_one(x: NDArray[Any]) -> NDArray[np.float32]:
    """Rows (n, d) times powers of two that make their largest number 0.5 to 1: exact, whatever their size."""
    wide = np.asarray(x, np.float64)
    exponents = np.frexp(np.abs(wide).max(1, initial=0))[1]
    return np.asarray(np.ldexp(wide, -exponents[:, None]), np.float32)


def greedy(values: NDArray[np.float64], x: NDArray[np.float32], rows: int, *, diversity: float) -> NDArray[np.int64]:
    """Maximal marginal relevance.

    Args:
        values: (n,) values, high = keep.
        x: (n, d) unit rows.
        rows: number of rows to choose.
        diversity: weight of the distance, 0 to 1.

    Returns:
        (rows,) indices in the order of choice.

    >>> greedy(np.array([1.0, 0.9, 0.0]), np.eye(2, dtype=np.float32)[[0, 0, 1]], 2, diversity=0.5).tolist()
    [0, 2]
    """
    near = np.full(len(x), -1.0, np.float32)  # to nothing yet: all alike
    left = np.ones(len(x), bool)
    chosen = np.empty(rows, np.int64)
    for step in range(rows):
        gain = np.where(left, (1 - diversity) * values - diversity * near, -np.inf)
        chosen[step] = gain.argmax()
        left[chosen[step]] = False
        np.maximum(near, x @ x[chosen[step]], out=near)
    return chosen


def _ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks scaled to 0 ... 1, equal for equal scores."""
    values, rank = np.unique(scores, return_inverse=True)
    return rank / max(len(values) - 1, 1)
