"""Fitted state per row: kept under 64-bit digests of an id or of content, looked up from a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_prune.data.batch import Batch
from hf_prune.data.identity import digests
from hf_prune.data.texts import read_column


def find(keys: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Indices (n,) of wanted keys among those there are, -1 where there is none.

    Args:
        keys: (m,) keys in ascending order, without repeats.
        wanted: (n,) keys in any order.

    >>> find(np.array([2, 5, 9], np.uint64), np.array([9, 3, 2], np.uint64)).tolist()
    [2, -1, 0]
    """
    at = np.searchsorted(keys, wanted)
    at[at == len(keys)] = 0
    hit = keys[at] == wanted if len(keys) else np.zeros(len(wanted), bool)
    return np.where(hit, at, -1)


def find_rows(batch: Batch, column: str, keys: NDArray[np.uint64], source: str) -> NDArray[np.int64]:
    """Indices (n,) of a batch's rows among keys, by the digests of one column (or field, `column.field`).

    Args:
        batch: rows to look up.
        column: column of ids, or of the content that the keys are digests of.
        keys: (m,) `digests` in ascending order, without repeats.
        source: where the keys come from, for the message: "the log", "the rows it was fitted on".

    Raises:
        ValueError: a row has none of the keys, or is null; the message lists the first five.

    >>> keys = np.sort(digests(["a", "b"]))
    >>> find_rows(Batch({"row_id": ["a", "z"]}, "AUM"), "row_id", keys, "the log")
    Traceback (most recent call last):
    ...
    ValueError: AUM: 1 of 2 rows is not in the log: row_id 'z'; ...
    """
    values = read_column(batch, column)
    at = find(keys, digests(values))
    lost = np.flatnonzero(at < 0)
    if len(lost):
        shown = ", ".join(_short(values, int(i)) for i in lost[:5])
        rounded = isinstance(values, np.ndarray) and values.dtype == np.float32
        hint = "; a format (numpy, torch) gives float64 rounded: use ds.with_format(None)" if rounded else ""
        raise ValueError(
            f"{batch.who}: {len(lost)} of {batch.n} rows {'is' if len(lost) == 1 else 'are'} not in {source}: "
            f"{column} {shown}{', ...' if len(lost) > 5 else ''}; score the dataset it was made from, or make it anew"
            + hint
        )
    return at


def _short(values: Any, row: int) -> str:
    value = values[row]
    text = repr(value.as_py() if hasattr(value, "as_py") else value)
    return text if len(text) <= 60 else text[:57] + "..."
