"""Scores of rows that were compared with each other: computed when fitting, looked up when scoring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_count, check_parallel
from hf_prune.data.batch import Batch
from hf_prune.data.lookup import find_rows
from hf_prune.scorer import Scorer


@dataclass(frozen=True, eq=False, kw_only=True)
class PlacedRows(Scorer):
    """Base of scorers whose `fit` compares all rows of a dataset with each other.

    Args:
        keys: (m,) uint64 digests of the rows' ids or vectors, ascending.
        scores: (m,) float32 scores in the order of the keys.
        embedding: column of vectors.
        row_id: column of ids; None where the vector is the id.
        flops_per_row: floating-point operations of the fit for each row.
        name: score column; a field of every subclass.
        fitted_on: what the scorer was fitted on, and how.
    """

    keys: np.ndarray
    scores: np.ndarray
    embedding: str = "embedding"
    row_id: str | None = None
    flops_per_row: float = 0.0
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        check_parallel(type(self).__name__, **self.per_row())

    def per_row(self) -> dict[str, np.ndarray]:
        """Fields that hold one number (m,) for each key, the keys among them."""
        return {"keys": self.keys, "scores": self.scores}

    def positions(self, batch: Batch) -> NDArray[np.int64]:
        """Indices (n,) of a batch's rows among the keys.

        Raises:
            ValueError: a row that was not there when fitting; the message lists the first five.
        """
        return find_rows(batch, self.row_id or self.embedding, self.keys, "the rows it was fitted on")

    def cost(self, batch: Batch) -> float:
        return self.flops_per_row * batch.n

    def score(self, batch: Batch, rank: int | None) -> Any:
        return self.scores[self.positions(batch)]


def check_rows(rows: Any, n: int, what: str) -> None:
    """Raise a ValueError unless `rows` is a number of rows that can be chosen of n.

    >>> check_rows(4, 3, "distinct rows")
    Traceback (most recent call last):
    ...
    ValueError: rows=4 to choose, but there are 3 distinct rows; use rows=3 or less
    """
    check_count("rows", rows)
    if rows > n:
        raise ValueError(f"rows={rows} to choose, but there are {n} {what}; use rows={n} or less")


def rank_scores(order: np.ndarray, value: np.ndarray) -> np.ndarray:
    """How many of n rows come after each: the chosen ones in their order, then the others, the largest value first.

    Args:
        order: (k,) rows that were chosen, the first one first.
        value: (n,) numbers that order the rows that were not.

    Returns:
        (n,) float64 numbers of rows; equal for equal values.

    >>> rank_scores(np.array([2, 0]), np.array([0, 1.0, 0, 3.0, 1.0])).tolist()
    [3.0, 0.0, 4.0, 2.0, 0.0]
    """
    n = len(value)
    rest = np.ones(n, bool)
    rest[order] = False
    score = np.empty(n)
    score[order] = n - 1 - np.arange(len(order))
    score[rest] = np.searchsorted(np.sort(value[rest]), value[rest])
    return score
