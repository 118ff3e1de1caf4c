"""Filtering a stream by a threshold, batch by batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_prune.checks import check_column
from hf_prune.data.arrow import numbers
from hf_prune.prune.inputs import chunked
from hf_prune.prune.request import Request
from hf_prune.prune.select import passes


@dataclass(frozen=True)
class _Passes:
    """The threshold on one batch of a stream."""

    column: str
    threshold: float | int
    prefer: str
    nulls: str
    dtype: str | None

    def __call__(self, batch: Any) -> list[bool]:
        column = chunked(self.column, batch, None)
        values, null = numbers(column, self.column)
        values = values.astype(self.dtype) if self.dtype else values
        if values.dtype.kind == "f":
            null = null | np.isnan(values)
        if null.any() and self.nulls == "raise":
            raise ValueError(f"{self.column!r} is null or NaN in the stream; pass nulls='drop' or 'keep'")
        kept: list[bool] = np.where(null, self.nulls == "keep", passes(values, self.threshold, self.prefer)).tolist()
        return kept


def filter_stream(ds: Any, request: Request) -> Any:
    """The rows of an `IterableDataset` that pass a threshold.

    Raises:
        MissingColumnError: there is no such column.
        ValueError: the rule needs the whole column.
    """
    column = request.name
    if request.threshold is None:
        raise ValueError(
            "a stream can be filtered by threshold only: a fraction, a number of rows or a budget needs the"
            " whole column; use threshold=, or materialise the stream first"
        )
    if request.one_per is not None:
        raise ValueError(f"one_per={request.one_per!r} needs the whole column; materialise the stream first")
    features = ds.features or {}
    check_column(ds, column)
    # a float32 comes out of a stream as a wider Python float, and must meet the same threshold as in Arrow
    dtype = "float32" if getattr(features.get(column), "dtype", None) == "float32" else None
    test = _Passes(column, request.threshold, request.prefer, request.nulls, dtype)
    kept = ds.with_format(None).filter(test, input_columns=[column], batched=True)
    return kept if ds._formatting is None else kept.with_format(ds._formatting.format_type)
