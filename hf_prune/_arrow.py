"""Columns as Arrow has them: read through buffers, never through Python lists."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def matrix_from_arrow(array: pa.Array, name: str) -> np.ndarray:
    """Read an Arrow list column of equally long rows as an (n, d) array, without a copy if there are no nulls.

    Raises:
        TypeError: the column holds no lists of numbers.
        ValueError: a null row, or rows of unequal length.
    """
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)) or not (
        pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    ):
        raise TypeError(
            f"column {name!r} holds {kind}, not rows of numbers; name an embedding column, or make one with Embedder"
        )
    if array.null_count:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"column {name!r}: row {row} is null; embed it, or drop such rows first")
    n = len(array)
    if n == 0:
        return np.empty((0, 0), kind.value_type.to_pandas_dtype())
    if pa.types.is_fixed_size_list(kind):
        width = kind.list_size
    else:
        lengths = pc.list_value_length(array).to_numpy()
        width = int(lengths[0])
        ragged = np.flatnonzero(lengths != width)
        if len(ragged):
            row = int(ragged[0])
            raise ValueError(
                f"column {name!r} is ragged: row {row} has {int(lengths[row])} numbers, row 0 has {width}; "
                "all rows need one width"
            )
    flat = array.flatten()
    if flat.null_count:
        row = int(np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0]) // max(width, 1)
        raise ValueError(f"column {name!r}: row {row} has a null in it; embed it again, or drop such rows first")
    matrix: np.ndarray = flat.to_numpy().reshape(n, width)
    return matrix


def numbers_from_arrow(array: pa.Array, name: str) -> np.ndarray:
    """Read an Arrow column of numbers as an (n,) array; nulls become NaN."""
    if not (pa.types.is_floating(array.type) or pa.types.is_integer(array.type) or pa.types.is_boolean(array.type)):
        raise TypeError(f"column {name!r} holds {array.type}, not numbers")
    values: np.ndarray = array.to_numpy(zero_copy_only=False)
    return values
