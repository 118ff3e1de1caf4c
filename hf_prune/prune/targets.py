"""Samples for several targets, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_prune.checks import check_dataset
from hf_prune.data import identity
from hf_prune.data.arrow import floats_column
from hf_prune.data.layout import take_rows
from hf_prune.prune.draw import METHODS
from hf_prune.prune.inputs import draw_keys
from hf_prune.prune.rule import Rule


def sample_by_targets(
    ds: Any,
    proportions: Mapping[str, float],
    *,
    keep: float | None = None,
    rows: int | None = None,
    seed: int = 0,
    row_id: str | None = "row_id",
    layout: str = "auto",
) -> Any:
    """Sample by several columns of log weights, one target after the other, each among the rows that are left.

    Args:
        ds: a `Dataset`.
        proportions: column of log weights to its share of the sample. Each gets its share rounded down, the last one
            the rest.
        keep, rows: a fraction of all rows, or their number.
        seed: of the noise, which is a function of (seed, target, row id).
        row_id: column of ids; content and the number of the copy where there is none.
        layout: as in `filter_by_score`.

    Returns:
        The rows, in dataset order.

    Raises:
        ValueError: no proportions, or negative ones; NaN scores; fewer rows with a weight above 0 than wanted.
    Reference: `separate_targets` of the package data-selection.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"x": ["a", "b", "c"], "dsir_p": [90.0, 0, 0], "dsir_q": [90.0, 0, 900.0]})
    >>> sample_by_targets(ds, {"dsir_p": 0.5, "dsir_q": 0.5}, rows=2)["x"][:]
    ['a', 'c']
    """
    check_dataset(ds, "sample_by_targets")
    shares = np.array(list(proportions.values()), np.float64)
    if not len(shares) or not (shares >= 0).all() or not shares.sum() > 0:
        raise ValueError(f"proportions={dict(proportions)!r}; give columns with shares >= 0, not all 0")
    k = Rule(keep=keep, rows=rows).count(len(ds))
    keys = draw_keys(ds, row_id)
    wanted = [int(k * p) for p in shares / shares.sum()]
    wanted[-1] += k - sum(wanted)
    taken = np.zeros(len(ds), bool)
    for t, (column, count) in enumerate(zip(proportions, wanted, strict=True)):
        scores = floats_column(ds, column)
        if np.isnan(scores).any():
            raise ValueError(
                f"{column!r} is null or NaN in {int(np.isnan(scores).sum())} rows, first in row "
                f"{int(np.argmax(np.isnan(scores)))}; drop or score these rows"
            )
        left = np.flatnonzero(~taken)
        u = identity.uniform(identity.seeded(keys[left], t), seed)
        if count:
            taken[left[METHODS["gumbel"](scores[left], u, count)]] = True
    return take_rows(ds, np.flatnonzero(taken), layout)
