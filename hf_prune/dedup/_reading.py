"""Texts that were fitted, found again in a batch to be scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_prune.data import identity
from hf_prune.data.batch import Batch
from hf_prune.data.lookup import find
from hf_prune.data.reading import Texts


def fitted_rows(batch: Batch, found: Texts, known: NDArray[np.uint64], text: Any) -> NDArray[np.int64]:
    """Positions (n,) of a batch's texts among those that were fitted, -1 for null.

    Raises:
        ValueError: a text was not there when fitting: who its neighbours are is not known.
    """
    at = find(known, found.digests)
    at[found.null] = -1
    lost = np.flatnonzero((at < 0) & ~found.null)
    if len(lost):
        shown = ", ".join(_short(found.array[int(i)].as_py()) for i in lost[:3])
        raise ValueError(
            f"{batch.who}: {len(lost)} of {batch.n} rows {'was' if len(lost) == 1 else 'were'} not among the rows it "
            f"was fitted on: {text} {shown}{', ...' if len(lost) > 3 else ''}; fit on the dataset that is scored, or "
            "compare new rows with a fixed set by fit(..., reference=...)"
        )
    return at


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def emptied(parts: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Arrays put together; the list is emptied, each let go when it is copied, so that no two copies of all are held.

    >>> emptied([np.array([1], np.uint64), np.array([2, 3], np.uint64)]).tolist()
    [1, 2, 3]
    """
    out, filled = np.empty(sum(map(len, parts)), np.uint64), 0
    parts.reverse()
    while parts:
        part = parts.pop()
        out[filled : filled + len(part)] = part
        filled += len(part)
    return out


def cluster_ids(digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Digests (n,) as non-negative int64 ids: their upper 63 bits."""
    return (digests >> np.uint64(1)).astype(np.int64)


def facts_of(
    digests: NDArray[np.uint64], copies: NDArray[Any], nulls: int, text: str | Sequence[str]
) -> dict[str, Any]:
    """What a scorer was fitted on: (m,) distinct texts and how many rows have each, and rows without one."""
    content = identity.ContentSum()
    content.add(digests, copies)
    return {
        "rows": int(copies.sum()) + nulls,
        "texts": len(digests),
        "nulls": nulls,
        "column": text if isinstance(text, str) else list(text),
        "content": content.text,
    }
