"""What the Vendi Score is given, as arrays: vectors in blocks, items of a column, probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from hf_prune.checks import check_column, check_columns
from hf_prune.data import arrow
from hf_prune.data.formats import unformatted
from hf_prune.data.reading import batches

WHO = "vendi_score"
STEP = 8192  # rows read at a time


class Block(NamedTuple):
    """Rows that stand together: (b, d) vectors, their weights if any, the number of the first."""

    x: np.ndarray
    weights: np.ndarray | None
    start: int


class Rows(NamedTuple):
    """Vectors that can be read more than once, and what is known of them beforehand."""

    blocks: Callable[[], Iterator[Block]]
    n: int | None
    double: bool  # float64 rows, which float32 products would shorten


def to_rows(x: Any, embedding: str, weights: Any) -> Rows:
    """What there is to read the vectors, checked as far as can be before reading them."""
    if hasattr(x, "column_names"):
        return _dataset_rows(x, embedding, weights)
    x = to_array(x)
    if x.ndim != 2:
        raise ValueError(f"{WHO} got an array of shape {x.shape}, not (n, d) vectors; for anything else name a kernel")
    p = to_probabilities(weights, len(x))
    return Rows(lambda: iter([Block(x, p, 0)]), len(x), x.dtype == np.float64)


def _dataset_rows(ds: Any, embedding: str, weights: Any) -> Rows:
    beside = weights if isinstance(weights, str) else None
    names = [embedding] if beside is None else [embedding, beside]
    check_columns(ds, names, WHO)
    n = len(ds) if hasattr(ds, "data") else None
    if n is None and weights is not None and beside is None:
        raise ValueError("weights of a stream are read along with its rows; name their column")
    p = None
    if beside is not None and n is not None:
        p = to_probabilities(arrow.floats_column(ds, beside), n)
    elif beside is None and n is not None:
        p = to_probabilities(weights, n)

    def blocks() -> Iterator[Block]:
        start = 0
        for batch in batches(ds, names, WHO, step=STEP):
            try:
                x = arrow.matrix(batch.arrow(embedding), embedding)
            except ValueError as error:
                raise ValueError(f"{WHO}, counting rows from {start}: {error}") from error
            some = None if p is None else p[start : start + len(x)]
            if beside is not None and n is None:
                some = np.asarray(batch.numbers(beside), np.float64)
            yield Block(x, some, start)
            start += len(x)

    kind = getattr((ds.features or {}).get(embedding), "feature", None)
    return Rows(blocks, n, getattr(kind, "dtype", None) == "float64")


def to_items(x: Any, column: str | None, kernel: Any, weights: Any) -> tuple[Any, Any]:
    """What a kernel other than the cosine compares, and its weights."""
    if not hasattr(x, "column_names"):
        return x, weights
    column = column or {"ngram": "text", "pixel": "image"}.get(kernel if isinstance(kernel, str) else "")
    column = column or getattr(kernel, "column", None)
    if not isinstance(column, str):
        raise ValueError(f"name the column={column!r} of {type(x).__name__} that the kernel compares")
    check_column(x, column, WHO)
    if isinstance(weights, str):
        weights = (
            [row[weights] for row in unformatted(x)] if not hasattr(x, "data") else arrow.floats_column(x, weights)
        )
    return [row[column] for row in unformatted(x.select_columns(column))], weights


def to_array(x: Any) -> np.ndarray:
    """Numbers as an array of float32 or float64."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = (x.float() if x.element_size() < 4 else x).numpy()
    try:
        x = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{WHO} got rows of unequal length; all need one width") from error
    if x.dtype.kind not in "biuf":
        raise TypeError(f"{WHO} got {x.dtype}, not numbers; for texts or images name a kernel, as kernel='ngram'")
    return np.asarray(x, np.float32 if x.dtype in (np.float16, np.float32) else np.float64)


def to_probabilities(weights: Any, n: int) -> np.ndarray | None:
    if weights is None:
        return None
    p = np.asarray(to_array(weights), np.float64)
    if p.shape != (n,):
        raise ValueError(f"weights have shape {p.shape}, but there are {n} rows; give one weight a row")
    if not (p >= 0).all():
        row = int(np.flatnonzero(~(p >= 0))[0])
        raise ValueError(f"the weight of row {row} is {p[row]:.6g}; weights are probabilities, 0 or more")
    if abs(p.sum() - 1) > 1e-6:
        raise ValueError(f"the weights sum to {p.sum():.9g}, not to 1; divide them by their sum")
    return p
