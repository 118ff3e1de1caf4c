"""Reading the columns of a `datasets.Dataset` through Arrow buffers, indices mapping included.

`Dataset.__getitem__` decodes images and makes Python objects; what is read here stays in Arrow. `datasets`
is imported only inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hf_prune.checks import check_column

SLAB_BYTES = 32 << 20  # what one step of a copy holds in memory, and at most twice that
SLAB_ROWS = 1 << 16


def positions_of(ds: Any) -> NDArray[np.int64] | None:
    """Physical row of each logical row, (n,), or None where the two are the same."""
    if ds._indices is None:
        return None
    return np.asarray(ds._indices.column(0).to_numpy()).astype(np.int64, copy=False)


def column_array(ds: Any, name: str) -> pa.ChunkedArray:
    """The stored column `name`, (n,) in the dataset's row order; nothing is decoded.

    Zero copy without an indices mapping, a gather in slabs of 32 MB with one.

    Raises:
        KeyError: there is no such column; the message lists those there are.
    """
    check_column(ds, name)
    positions = positions_of(ds)
    if positions is None:
        return ds.data.column(name)
    return take(ds.data.column(name), positions)


def take(column: pa.ChunkedArray, positions: NDArray[np.int64]) -> pa.ChunkedArray:
    """Rows `positions` of a chunked array: `ChunkedArray.take` without joining the chunks first."""
    if pa.types.is_primitive(column.type):
        return column.take(pa.array(positions))
    parts = [part.column(0) for part in gather(pa.table({"x": column}), positions)]
    return pa.chunked_array(parts, type=column.type)


def row_bytes(table: pa.Table) -> float:
    """Mean stored bytes of a row; 0.0 for an empty table."""
    return table.nbytes / table.num_rows if table.num_rows else 0.0


def gather(table: pa.Table, positions: NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
    """Rows `positions` (m,) of `table`, in that order, as record batches of about 32 MB at most.

    Batches are read one after the other where the positions ascend; elsewhere each slab is sorted, read, and
    put back in order, so that a memory-mapped table is never joined into one.
    """
    rows = int(min(SLAB_ROWS, max(1, SLAB_BYTES // max(1.0, row_bytes(table)))))
    batches = table.to_batches(max_chunksize=rows)
    starts = np.cumsum([0] + [batch.num_rows for batch in batches])
    if len(positions) < 2 or bool(np.all(positions[1:] >= positions[:-1])):
        yield from ascending(batches, starts, positions)
        return
    for first in range(0, len(positions), rows):
        slab = positions[first : first + rows]
        order = np.argsort(slab, kind="stable")
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        joined = pa.Table.from_batches(list(ascending(batches, starts, slab[order])), schema=table.schema)
        yield from joined.combine_chunks().take(pa.array(back)).to_batches()


def ascending(
    batches: list[pa.RecordBatch], starts: NDArray[np.int64], positions: NDArray[np.int64]
) -> Iterator[pa.RecordBatch]:
    """Rows at ascending positions of batches that begin at `starts`, as slices where they stand together."""
    bounds = np.searchsorted(positions, starts)
    for i in np.flatnonzero(bounds[1:] > bounds[:-1]):
        local = positions[bounds[i] : bounds[i + 1]] - starts[i]
        if local[-1] - local[0] + 1 == len(local) and (len(local) < 2 or bool(np.all(np.diff(local) == 1))):
            yield batches[i].slice(int(local[0]), len(local))
        else:
            yield batches[i].take(pa.array(local))


def is_number(kind: pa.DataType) -> bool:
    """Whether values of this Arrow type are bools, integers or floats."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def numbers(column: pa.ChunkedArray, name: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values (n,) in the column's own type (bools as uint8) and a mask (n,) of nulls; NaN is none.

    Integers do not go through floats: 2**53 + 1 stays itself. Values under the mask are 0.

    Raises:
        TypeError: the column does not hold numbers; the message names its type.

    >>> numbers(pa.chunked_array([[1, None], [2**53 + 1]]), "s")[0].tolist()
    [1, 0, 9007199254740993]
    """
    kind = column.type
    if pa.types.is_null(kind):
        return np.zeros(len(column)), np.ones(len(column), bool)
    if not is_number(kind):
        raise TypeError(f"column {name!r} has type {kind}, not numbers; choose another column, or cast this one")
    null = np.zeros(len(column), bool)
    if column.null_count:
        null = pc.is_null(column).to_numpy()
        column = pc.fill_null(column, pa.scalar(0).cast(kind))
    values = column.to_numpy()
    return (values.view(np.uint8) if values.dtype == bool else values), null


def numeric_column(ds: Any, name: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """`numbers` of the dataset's column `name`, in the dataset's row order.

    Raises:
        KeyError: no such column.
        TypeError: it does not hold numbers.
    """
    return numbers(column_array(ds, name), name)


def floats_column(ds: Any, name: str) -> NDArray[np.float64]:
    """A column of numbers as (n,) float64, null as NaN: for sums and pictures, where 2**53 + 1 need not stay itself."""
    values, null = numeric_column(ds, name)
    return np.where(null, np.nan, values.astype(np.float64))


def matrix_column(ds: Any, name: str, rows: NDArray[np.integer] | None = None) -> NDArray[Any]:
    """A column of equally long float lists as an array (n, d), in the column's own float type.

    Zero copy (and then read-only) where the column is one chunk and neither `rows` nor an indices mapping is
    there; else one copy of n * d values. No Python list is made.

    Args:
        ds: a `datasets.Dataset`.
        name: its column of lists or fixed-size lists of floats.
        rows: (m,) logical rows to read, in any order; all of them by default.

    Raises:
        KeyError: no such column.
        TypeError: it does not hold lists of floats; the message names its type.
        ValueError: a row is null, holds a null, or has another width; the message names the row and the
            widths.
    """
    check_column(ds, name)
    column = ds.data.column(name)
    kind = check_vectors(column.type, name)
    fixed = pa.types.is_fixed_size_list(kind)
    where = positions_of(ds)
    if rows is not None:
        sought = np.asarray(rows, np.int64)
        where = sought if where is None else where[sought]
    if where is None and column.num_chunks == 1:
        return _rectangle(column.chunk(0), None, np.arange(len(column)), name, None)
    n = len(column) if where is None else len(where)
    order = np.argsort(where, kind="stable") if where is not None else np.arange(n)
    sought = where[order] if where is not None else order
    starts = np.cumsum([0] + [len(chunk) for chunk in column.chunks])
    bounds = np.searchsorted(sought, starts)
    out: NDArray[Any] | None = None
    for i, chunk in enumerate(column.chunks):
        a, b = int(bounds[i]), int(bounds[i + 1])
        if a == b:
            continue
        local = None if where is None else sought[a:b] - starts[i]
        part = _rectangle(chunk, local, order[a:b], name, None if out is None else out.shape[1])
        if out is None:
            out = np.empty((n, part.shape[1]), part.dtype)
        out[order[a:b]] = part
    if out is None:
        return np.empty((0, kind.list_size if fixed else 0), kind.value_type.to_pandas_dtype())
    return out


def check_vectors(kind: pa.DataType, name: str) -> pa.DataType:
    """Raise a TypeError unless the type is one of lists of floats; give it back."""
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists or not pa.types.is_floating(kind.value_type):
        raise TypeError(f"column {name!r} has type {kind}, not lists of floats; give an embedding column")
    return kind


def matrix(array: pa.Array, name: str) -> NDArray[Any]:
    """One array of equally long float lists as (n, d), zero copy; the same errors as `matrix_column`."""
    check_vectors(array.type, name)
    return _rectangle(array, None, np.arange(len(array)), name, None)


def finite(x: NDArray[Any], name: str) -> NDArray[Any]:
    """Give a matrix (n, d) back; a ValueError that names the first row with NaN or infinite numbers."""
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(1))[0])
        raise ValueError(
            f"column {name!r} has numbers that are not finite in row {row}; embed it again, or drop such rows first"
        )
    return x


def one(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array: a copy only if it has several chunks."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def ordinary(column: Any) -> Any:
    """The column with the types `datasets` stores: data frames give views, large lists and dictionaries."""
    kind = _ordinary_type(column.type)
    try:
        return column if kind == column.type else column.cast(kind)
    except pa.ArrowInvalid:  # more text than 32-bit offsets reach
        return column


def _ordinary_type(kind: pa.DataType) -> pa.DataType:
    t = pa.types
    if t.is_dictionary(kind):
        return _ordinary_type(kind.value_type)
    if t.is_large_string(kind) or t.is_string_view(kind):
        return pa.string()
    if t.is_large_binary(kind) or t.is_binary_view(kind):
        return pa.binary()
    if t.is_fixed_size_list(kind):
        return pa.list_(_ordinary_type(kind.value_type), kind.list_size)
    if t.is_list(kind) or t.is_large_list(kind):
        return pa.list_(_ordinary_type(kind.value_type))
    if t.is_struct(kind):
        return pa.struct([(field.name, _ordinary_type(field.type)) for field in kind])
    return kind


def array_of(values: Any) -> pa.Array:
    """A column of lists or NumPy arrays as Arrow; an array of several axes becomes lists of one width.

    Raises:
        TypeError: values that Arrow has no type for.
        ValueError: a text with half of a surrogate pair.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        array = pa.array(np.ascontiguousarray(values).reshape(-1))
        for axis in range(values.ndim - 1, 0, -1):
            rows, size = int(np.prod(values.shape[:axis])), values.shape[axis]
            if size:
                array = pa.FixedSizeListArray.from_arrays(array, size)
            else:
                array = pa.ListArray.from_arrays(pa.array(np.zeros(rows + 1, np.int32)), array)
        return array
    if isinstance(values, np.ndarray):
        values = values.tolist()
    values = [v.tolist() if isinstance(v, np.ndarray) and v.ndim > 1 else v for v in values]
    first = next((v for v in values if v is not None), None)
    try:
        try:
            return pa.array(values)
        except OverflowError:  # ints past int64
            return pa.array(values, pa.uint64())
    except UnicodeEncodeError as error:
        row = next((i for i, v in enumerate(values) if isinstance(v, str) and v == error.object), None)
        raise ValueError(
            f"{'a text' if row is None else f'row {row} of this batch'} holds {error.object[error.start]!r}, half of a "
            "surrogate pair, which has no UTF-8; encode it with errors='replace' and decode it again"
        ) from error
    except (OverflowError, pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise TypeError(f"values of type {type(first).__name__} are no column: Arrow says: {error}") from error


def to_arrow(values: Any, dtype: str) -> pa.Array:
    """Values (n,) or (n, d), checked by the scorer, as an Arrow array of the declared type.

    >>> to_arrow(np.zeros((2, 3), np.float32), "float32[3]").type
    FixedSizeListType(fixed_size_list<item: float>[3])
    """
    if dtype == "string":
        return pa.array(values, pa.string())
    if not dtype.endswith("]"):
        return pa.array(values)
    item, length = dtype[:-1].split("[")
    if length:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), int(length))
    ends = np.cumsum([0] + [len(v) for v in values], dtype=np.int64)
    flat = np.concatenate([np.asarray(v, item) for v in values]) if len(values) else np.empty(0, item)
    return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), pa.array(flat))


def _rectangle(
    chunk: pa.Array, local: NDArray[np.int64] | None, rows: NDArray[np.int64], name: str, width: int | None
) -> NDArray[Any]:
    """Rows `local` of one chunk of lists as (m, d); `rows` are their names in messages."""
    if chunk.null_count:
        null = pc.is_null(chunk).to_numpy(zero_copy_only=False)
        null = null if local is None else null[local]
        if null.any():
            row = int(rows[null].min())
            raise ValueError(f"column {name!r} is null in row {row}; drop or fill such rows first")
    if pa.types.is_fixed_size_list(chunk.type):
        size = chunk.type.list_size
        starts = np.arange(len(chunk), dtype=np.int64) * size
        values, ends = chunk.values.slice(chunk.offset * size, len(chunk) * size), starts + size
    else:
        offsets = np.asarray(chunk.offsets.to_numpy()).astype(np.int64, copy=False)
        values, offsets = chunk.values.slice(offsets[0], offsets[-1] - offsets[0]), offsets - offsets[0]
        starts, ends = offsets[:-1], offsets[1:]
    if local is not None:
        starts, ends = starts[local], ends[local]
    widths = ends - starts
    if len(widths) == 0:
        return np.empty((0, width or 0), chunk.type.value_type.to_pandas_dtype())
    d = int(widths[0]) if width is None else width
    if np.any(widths != d):
        odd = int(np.flatnonzero(widths != d)[0])
        raise ValueError(
            f"column {name!r} is ragged: row {int(rows[odd])} has {int(widths[odd])} values, others have {d};"
            " all rows of a matrix need the same width"
        )
    if values.null_count:
        holes = pc.is_null(values).to_numpy(zero_copy_only=False)
        bad = holes[starts[:, None] + np.arange(d)].any(axis=1)
        if bad.any():
            row = int(rows[np.flatnonzero(bad)[0]])
            raise ValueError(f"column {name!r} holds a null value in row {row}; fill or drop such rows first")
        values = pc.fill_null(values, 0.0)
    flat: NDArray[Any] = values.to_numpy(zero_copy_only=True)
    if local is None:
        return flat.reshape(len(widths), d)
    return flat[starts[:, None] + np.arange(d)] if d else np.empty((len(widths), 0), flat.dtype)
