"""What engines hand over, as columns: Arrow tables, data frames, and tensors of whichever library.

`Dataset.map` formats every column before the function sees it (`with_format("torch")`, "polars", ...), and where that
is a table it takes the function's table for all there is. This module is where the package knows of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from hf_prune.data import arrow

_SCALARS = (str, bytes, bool, int, float)


def is_table(source: Any) -> bool:
    """Whether this is an Arrow table or a data frame of pandas or polars."""
    if isinstance(source, (pa.Table, pa.RecordBatch)):
        return True
    frame = {"pandas": "iloc", "polars": "to_arrow"}.get(_library(source))
    return frame is not None and hasattr(source, "columns") and hasattr(source, frame)


def columns_of(table: Any) -> dict[str, Any]:
    """The columns of a table: Arrow arrays, and Python objects where Arrow has no type for them (pandas)."""
    if _library(table) == "pandas":
        return {str(name): _series(table[name]) for name in table.columns}
    if _library(table) == "polars":
        table = table.to_arrow()
        return {name: arrow.ordinary(column) for name, column in zip(table.column_names, table.columns, strict=True)}
    return dict(zip(table.schema.names, table.columns, strict=True))


def as_table(source: Any, who: str) -> pa.Table:
    """A table or a data frame as an Arrow table.

    Raises:
        TypeError: a data frame with objects that Arrow cannot hold, such as decoded pictures.
    """
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pa.RecordBatch):
        return pa.Table.from_batches([source])
    columns = columns_of(source)
    for name, values in columns.items():
        if isinstance(values, list):
            raise TypeError(
                f"{who} got a {_kind(source)} whose column {name!r} holds {_first_kind(values)}, which cannot be "
                "written back as it was stored; use ds.with_format(None)"
            )
    return pa.table(columns)


def with_columns(table: pa.Table, new: Mapping[str, pa.Array]) -> pa.Table:
    """The table with new columns: `map` keeps of a formatted table what the function gives back."""
    for name, values in new.items():
        at = table.schema.get_field_index(name)
        table = table.append_column(name, values) if at < 0 else table.set_column(at, name, values)
    return table


def plain(values: Any) -> Any:
    """A column as a list or a NumPy array, whatever library its values are of; nested tensors become arrays too.

    >>> plain(pa.array([[1], None]))
    [[1], None]
    """
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values.to_pylist()
    return _host(values)


def unformatted(ds: Any) -> Any:
    """A dataset whose rows come as Python objects; one with a transform of the user's own stays as it is."""
    own = not isinstance(ds, Mapping) and hasattr(ds, "data") and ds.format["type"] == "custom"
    return ds if own else ds.with_format(None)


def _host(value: Any) -> Any:
    """Tensors as NumPy arrays, at any depth; anything else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value
    if isinstance(value, (list, tuple, np.ndarray)):
        first = next((v for v in value if v is not None), None)
        return value if isinstance(first, (*_SCALARS, type(None))) else [_inner(v) for v in value]
    if isinstance(value, Mapping):
        return {name: _inner(v) for name, v in value.items()}
    library = _library(value)
    if library == "torch":
        import torch

        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if library in ("jax", "jaxlib"):
        array = np.asarray(value)
        return array.astype(np.float32) if array.dtype.kind == "V" else array  # bfloat16
    if library == "tensorflow":
        return _text(value.to_list() if hasattr(value, "to_list") else value.numpy())
    if library in ("pandas", "polars") and hasattr(value, "to_list"):
        return value.to_list()
    return value


def _inner(value: Any) -> Any:
    """A value inside a column: an array without axes is a number."""
    found = _host(value)
    return found.item() if isinstance(found, np.ndarray) and found.ndim == 0 else found


def _text(value: Any) -> Any:
    """TensorFlow keeps texts as bytes, at any depth."""
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [_text(v) for v in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _series(series: Any) -> Any:
    """A column of a pandas data frame."""
    try:
        return arrow.ordinary(pa.Array.from_pandas(series))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return [None if v is None or v is np.nan else v for v in series]


def _library(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _first_kind(values: list[Any]) -> str:
    return _kind(next((v for v in values if v is not None), None))
