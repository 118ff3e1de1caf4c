"""Compiled loops of this folder."""

from __future__ import annotations

import numpy as np

from hf_prune.numerics.compiled import kernel


@kernel
def add_products(
    ends: np.ndarray,
    column: np.ndarray,
    value: np.ndarray,
    starts: np.ndarray,
    row: np.ndarray,
    by_column: np.ndarray,
    k: np.ndarray,
) -> None:
    """Add X X^T to (n, n) `k`, for sparse X given by rows (`ends`, `column`, `value`) and by columns."""
    for i in range(len(ends) - 1):
        for at in range(ends[i], ends[i + 1]):
            c, v = column[at], value[at]
            for to in range(starts[c], starts[c + 1]):
                k[i, row[to]] += v * by_column[to]
