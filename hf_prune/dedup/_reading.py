"""Texts that were fitted, looked up for a batch to be scored; what a fit writes down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_prune.data import identity
from hf_prune.data.batch import Batch
from hf_prune.data.lookup import find
from hf_prune.data.reading import Texts
from hf_prune.data.texts import NULL


def fitted_rows(batch: Batch, texts: Texts, known: NDArray[np.uint64], text: Any) -> NDArray[np.int64]:
    """Indices (n,) of a batch's texts among those that were fitted, -1 for null.

    Args:
        batch: n rows.
        texts: their texts.
        known: (m,) digests of the texts that were fitted, ascending.
        text: column, or columns, for the message.

    Raises:
        ValueError: a text was not there when fitting: who its neighbours are is not known.
    """
    at = find(known, texts.digests)
    at[texts.null] = -1
    lost = np.flatnonzero((at < 0) & ~texts.null)
    if len(lost):
        shown = ", ".join(_short(texts.array[int(i)].as_py()) for i in lost[:3])
        raise ValueError(
            f"{batch.who}: {len(lost)} of {batch.n} rows {'was' if len(lost) == 1 else 'were'} not among the rows it "
            f"was fitted on: {text} {shown}{', ...' if len(lost) > 3 else ''}; fit on the dataset that is scored, or "
            "compare new rows with a fixed set by fit(..., reference=...)"
        )
    return at


def null_rows(texts: Texts) -> dict[int, str]:
    """Why rows of a batch cannot be scored, by their number."""
    return dict.fromkeys(np.flatnonzero(texts.null).tolist(), NULL)


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
    digests: NDArray[np.uint64], copies: NDArray[Any], nulls: int, text: str | Sequence[str], who: str, on_bad: str
) -> dict[str, Any]:
    """What a scorer was fitted on.

    Args:
        digests: (m,) digests of the distinct texts.
        copies: (m,) number of rows that have each.
        nulls: number of rows without a text.
        text: column, or columns, that were read.
        who: name of the scorer, for the message.
        on_bad: what becomes of a row without a text: "raise" or "nan".

    Raises:
        ValueError: there are rows without a text, and `on_bad` is "raise".
    """
    if nulls and on_bad == "raise":
        raise ValueError(
            f"{who}.fit: {nulls} of {int(copies.sum()) + nulls} rows of {text!r} are null; drop such rows first, or "
            "pass on_bad='nan'"
        )
    content = identity.ContentSum()
    content.add(digests, copies)
    return {
        "rows": int(copies.sum()) + nulls,
        "texts": len(digests),
        "nulls": nulls,
        "column": text if isinstance(text, str) else list(text),
        "content": content.text,
    }
