"""`Batch`: a read-only view of the rows that `map`, a stream, Ray Data or `score` hand to a scorer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from hf_prune.checks import missing_column
from hf_prune.data import arrow as _arrow
from hf_prune.data import formats
from hf_prune.data.utf8 import check_utf8


class Batch(Mapping[str, Any]):
    """Rows as columns of equal length, from any of the engines; nothing can be written to it.

    Args:
        source: what the engine handed over: a `LazyBatch`; a dict of lists, arrays, tensors or Arrow arrays; an Arrow
            table; or a data frame of pandas or polars.
        who: who reads it, for the messages.

    Raises:
        TypeError: rows one by one, or bare columns.
        ValueError: columns of unequal lengths.

    >>> batch = Batch({"x": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1]}, who="demo")
    >>> batch.n, batch.matrix("x").shape
    (2, (2, 2))
    """

    def __init__(self, source: Any, who: str = "this scorer") -> None:
        if isinstance(source, Batch):  # counting the rows of a view must not decode them
            self.source: Any = source.source
            self.read: set[str] = source.read
            self.n: int = source.n
        else:
            if formats.is_table(source):
                source = formats.columns_of(source)
            _check_source(source, who)
            self.source, self.read, self.n = source, set(), _rows(source, who)
        self.who = who

    def __getitem__(self, name: str) -> Any:
        """One column as a list or a NumPy array, whatever the engine gives; pictures decoded."""
        return formats.plain(self._given(name))

    def __contains__(self, name: object) -> bool:
        return name in self.source

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)

    def arrow(self, name: str) -> pa.Array:
        """One column as Arrow, without a copy where the engine has it so (Image columns: the stored bytes)."""
        stored = self._stored(name)
        if stored is not None:
            return stored
        return _arrow.array_of(self[name])

    def pictures(self, name: str) -> list[Any]:
        """One column, row by row, as `decode_image` takes it: stored bytes, or what the engine has decoded."""
        stored = self._stored(name)
        return list(self._given(name)) if stored is None else stored.to_pylist()

    def first(self, rows: int) -> Batch:
        """The first rows as a batch; nothing is decoded."""
        stored = {name: self._stored(name) for name in self}
        return Batch({n: (self._given(n) if s is None else s)[:rows] for n, s in stored.items()}, self.who)

    def matrix(self, name: str, width: int | None = None, fitted: str = "the rows it was fitted on") -> np.ndarray:
        """One column of equally long rows of numbers as an (n, d) array, read through Arrow's buffers if it can be.

        Args:
            name: of the column.
            width: numbers a row must have; None takes any.
            fitted: what has that width, for the message.

        Raises:
            TypeError: the column holds no rows of numbers.
            ValueError: rows of unequal length or another width, a null row, or numbers that are not finite.
        """
        stored = self._stored(name)
        if stored is not None:
            matrix = _arrow.matrix(stored, name)
        else:
            matrix = _matrix_from_values(self[name], name)
        if width is not None and self.n and matrix.shape[1] != width:
            raise ValueError(
                f"{self.who}: column {name!r} has width {matrix.shape[1]}, {fitted} have {width}; embed the rows with "
                "the model of the fit, or fit again"
            )
        return _arrow.finite(matrix, name)

    def numbers(self, name: str) -> np.ndarray:
        """One column of numbers as an (n,) array; nulls become NaN (and integers then float64)."""
        stored = self._stored(name)
        if stored is not None:
            numbers, null = _arrow.numbers(pa.chunked_array([stored]), name)
            return np.where(null, np.nan, numbers) if null.any() else numbers
        values = self[name]
        if not isinstance(values, np.ndarray) or values.dtype == object:
            values = np.asarray([np.nan if v is None else v for v in values])
        if values.ndim != 1 or values.dtype.kind not in "biuf":
            raise TypeError(f"column {name!r} holds no plain numbers but {values.dtype} of shape {values.shape}")
        return np.asarray(values)

    def texts(self, name: str) -> list[str]:
        """One column of strings as a list.

        Raises:
            TypeError: a row is no string (a null is none either).
            ValueError: a text with half of a surrogate pair.
        """
        values = self[name]
        values = values.tolist() if isinstance(values, np.ndarray) else list(values)
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise TypeError(
                    f"column {name!r}: row {row} of this batch is {type(value).__name__}, not text; "
                    "name a text column, or drop such rows first"
                )
        check_utf8(values, self.who)
        return values

    def _given(self, name: str) -> Any:
        """One column as the engine has it."""
        if name not in self.source:
            raise missing_column(name, list(self.source), self.who)
        self.read.add(name)
        return self.source[name]

    def _stored(self, name: str) -> pa.Array | None:
        """The column as Arrow, if the engine has it so: tables, and batches of `map` that nobody has formatted yet."""
        table = getattr(self.source, "pa_table", None)
        if table is not None and name in getattr(self.source, "keys_to_format", ()):
            self.read.add(name)
            return _arrow.one(table.column(name))
        if not isinstance(self.source, dict) or not isinstance(self.source.get(name), (pa.Array, pa.ChunkedArray)):
            return None
        column = self._given(name)
        return _arrow.one(column) if isinstance(column, pa.ChunkedArray) else column


def _matrix_from_values(values: Any, name: str) -> np.ndarray:
    if not isinstance(values, np.ndarray) or values.dtype == object:
        rows = [np.asarray(v) for v in values]
        for row, item in enumerate(rows):
            if item.dtype == object or item.ndim != 1:
                raise TypeError(
                    f"column {name!r}: row {row} of this batch is {_kind(values[row])}, not a list of numbers; "
                    "name an embedding column, or make one with Embedder"
                )
            if len(item) != len(rows[0]):
                raise ValueError(
                    f"column {name!r} is ragged: row {row} of this batch has {len(item)} numbers, row 0 has "
                    f"{len(rows[0])}; all rows need one width"
                )
        values = np.stack(rows) if rows else np.empty((0, 0), np.float32)
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise TypeError(f"column {name!r} holds {values.dtype} of shape {values.shape}, not rows of numbers")
    return np.asarray(values)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _rows(source: Mapping[str, Any], who: str) -> int:
    table = getattr(source, "pa_table", None)
    if table is not None:
        return int(table.num_rows)
    lengths = {name: len(values) for name, values in source.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{who}: the batch has columns of unequal lengths {lengths}")
    return next(iter(lengths.values()), 0)


def _check_source(source: Any, who: str) -> None:
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    if not isinstance(source, Mapping):
        raise TypeError(
            f"{who} got a {kind} instead of a batch; call it as ds.map(scorer, batched=True), without input_columns"
        )
    if kind.endswith("LazyRow") or any(not _is_column(v) for v in _peek(source)):
        raise TypeError(f"{who} got one row; call it as ds.map(scorer, batched=True)")


def _peek(source: Mapping[str, Any]) -> list[Any]:
    """The values that exist already: looking at a lazy batch must not decode its images."""
    if hasattr(source, "keys_to_format"):
        return []
    return list(source.values())


def _is_column(values: Any) -> bool:
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__"):
        return False
    return getattr(values, "ndim", 1) > 0
