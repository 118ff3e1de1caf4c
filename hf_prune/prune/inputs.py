"""What the rules of `prune` read: scores, costs, clusters and ids as checked arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_prune.data.arrow import array_of, column_array, numbers, take
from hf_prune.data.formats import plain
from hf_prune.data.identity import check_unique, content_keys, digests, seeded
from hf_prune.prune.select import Hashes, Index, Mask, codes_of


def ids_of(ds: Any, row_id: str | None) -> pa.ChunkedArray | None:
    """The id column (n,), or None where positions tell rows apart."""
    if row_id is None or (row_id == "row_id" and row_id not in ds.column_names):
        return None
    return column_array(ds, row_id)


def keys_of(ids: pa.ChunkedArray | None, at: Index) -> NDArray[np.uint64]:
    """Keys (m,) of the rows `at`: digests of their ids, which must differ, or their positions."""
    if ids is None:
        return at.astype(np.uint64)
    part = ids if len(at) == len(ids) and bool((np.diff(at) == 1).all()) else take(ids, at)
    keys = digests(part)
    if len(np.unique(keys)) < len(keys):
        check_unique(part)
    return keys


def draw_keys(ds: Any, row_id: str | None) -> NDArray[np.uint64]:
    """Keys (n,) to draw rows by: of their ids, or of content and copy where there are none, never of positions."""
    ids = ids_of(ds, row_id)
    return content_keys(ds) if ids is None else keys_of(ids, np.arange(len(ds)))


def hashes_of(ids: pa.ChunkedArray | None, seed: int) -> Hashes:
    """The hash of rows by their positions; ids are read only for the rows asked about."""
    return lambda at: seeded(keys_of(ids, at), seed)


def scores_of(column: pa.ChunkedArray, name: str, nulls: str) -> tuple[NDArray[Any], Mask]:
    """Scores (n,) and which of them are null or NaN; the policy's error if it is "raise"."""
    if len(column) == 0:
        raise ValueError(f"{name!r} has no rows: there is nothing to choose from")
    values, null = numbers(column, name)
    if values.dtype.kind == "f":
        null = null | np.isnan(values)
    if null.all():
        raise ValueError(f"{name!r} holds no score at all: every one of its {len(null)} rows is null or NaN")
    if nulls == "raise" and null.any():
        raise ValueError(
            f"{name!r} is null or NaN in {int(null.sum())} rows, first in row {int(np.argmax(null))};"
            " pass nulls='drop' or nulls='keep', or score these rows"
        )
    return values, null


def costs_of(column: pa.ChunkedArray, name: str) -> NDArray[Any]:
    """Costs (n,) as int64 or float64; an error for one that is null, negative or infinite."""
    values, null = numbers(column, name)
    wrong = null | ~((values >= 0) & (values < math.inf))
    if wrong.any():
        row = int(np.argmax(wrong))
        what = "null" if null[row] else values[row]
        raise ValueError(f"cost {name!r} is {what} in row {row}; a cost must be finite and not negative")
    return values.astype(np.int64 if values.dtype.kind in "iu" else np.float64)


def clusters_of(column: pa.ChunkedArray) -> Index:
    """Cluster of each row (n,) from 0; every null is a cluster of its own."""
    codes = codes_of([column])
    if column.null_count:
        null = column.is_null().to_numpy()
        codes[null] = int(codes.max()) + 1 + np.arange(int(null.sum()))
    return codes


def chunked(name: str, values: Any, n: int | None) -> pa.ChunkedArray:
    """An array, list, series or tensor as a chunked array of length n.

    Raises:
        TypeError: values that are no column.
        ValueError: more than one axis, or another length.
    """
    if hasattr(values, "iloc"):  # a series of pandas, whose nulls Arrow knows
        values = pa.array(values)
    elif not isinstance(values, (pa.Array, pa.ChunkedArray)):
        values = plain(values)
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise ValueError(f"{name} has shape {values.shape}; one number a row is needed")
        values = values.tolist() if values.dtype == object else values
    if isinstance(values, np.ndarray):
        values = pa.array(values)
    elif not isinstance(values, (pa.Array, pa.ChunkedArray)):
        try:
            values = array_of(values)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
    if not isinstance(values, pa.ChunkedArray):
        values = pa.chunked_array([values])
    if n is not None and len(values) != n:
        raise ValueError(f"{name} has {len(values)} rows and scores has {n}; they must be of the same rows")
    return values
