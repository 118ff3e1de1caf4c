"""One way to read a dataset: a `Dataset` or a stream, filtered or formatted, block by block, as Arrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hf_prune.checks import check_columns, check_dataset
from hf_prune.data import arrow, identity
from hf_prune.data.batch import Batch
from hf_prune.data.formats import unformatted
from hf_prune.data.progress import shown
from hf_prune.data.texts import NULL, columns_of, read_column, read_texts
from hf_prune.data.utf8 import string_array

STEP, STREAM_STEP = 1 << 15, 1 << 12  # rows at a time; those of a stream are Python objects
DECODED = 512  # rows at a time where images are decoded
BYTES = 1 << 28  # of text at a time


def batches(ds: Any, columns: Sequence[str], who: str, *, step: int = STEP, desc: str | None = None) -> Iterator[Batch]:
    """Columns of a dataset in blocks of rows, in order: nothing is decoded, nothing of the dataset's size is made.

    Args:
        ds: a `Dataset`, read through Arrow's buffers in the order of its indices mapping; or an `IterableDataset`.
        columns: names; a field of a struct column as `column.field`, for which the column is read.
        who: who reads, for the messages, as "DSIR.fit".
        step: rows of a block, at most.
        desc: words before the progress bar; None shows none.

    Raises:
        MissingColumnError: no such column.
        TypeError: a `DatasetDict`, or no dataset.

    >>> from datasets import Dataset
    >>> [batch.n for batch in batches(Dataset.from_dict({"x": [1, 2, 3]}).shuffle(0), ["x"], "demo", step=2)]
    [2, 1]
    """
    check_dataset(ds, who, streams=True)
    names = check_columns(ds, columns, who)
    held = _of_dataset(ds, names, who, step) if hasattr(ds, "data") else _of_stream(ds, names, who, step)
    return held if desc is None else shown(held, ds, desc, lambda batch: batch.n)


def _of_dataset(ds: Any, names: list[str], who: str, step: int) -> Iterator[Batch]:
    table, where = ds.data.table.select(names), arrow.positions_of(ds)
    step = max(1, min(step, int(BYTES / max(1.0, arrow.row_bytes(table)))))
    parts = arrow.gather(table, where) if where is not None else (table,)
    for part in parts:
        for start in range(0, part.num_rows, step):
            yield Batch(part.slice(start, step), who)


def _of_stream(ds: Any, names: list[str], who: str, step: int) -> Iterator[Batch]:
    for rows in ds.select_columns(names).with_format(None).iter(min(step, STREAM_STEP)):
        yield Batch(rows, who)


def decoded(ds: Any, who: str, desc: str, step: int = DECODED) -> Iterator[Batch]:
    """All columns of a dataset in blocks of rows as `map` hands them over: for networks, which read images.

    Raises:
        TypeError: a `DatasetDict`, or no dataset.
    """
    check_dataset(ds, who, streams=True)
    blocks = (Batch(rows, who) for rows in unformatted(ds).iter(step))
    return shown(blocks, ds, desc, lambda batch: batch.n)


class Block(NamedTuple):
    """Rows that stand together: (b, d) finite floats, a second column if any, the number of the first row."""

    x: NDArray[Any]
    beside: pa.Array | None
    start: int


def vector_blocks(ds: Any, embedding: str, who: str, beside: str | None = None, *, step: int = STEP) -> Iterator[Block]:
    """An embedding column, and one beside it, in checked blocks.

    Args:
        ds: a `Dataset` or an `IterableDataset`.
        embedding: column of rows of floats, all of one width.
        who: who reads, for the messages.
        beside: a second column to read along.
        step: rows of a block, at most.

    Raises:
        MissingColumnError: no such column.
        TypeError: a `DatasetDict`, or a column of another type.
        ValueError: no rows; a null, ragged, non-finite or empty row.
    """
    width, start = None, 0
    for batch in batches(ds, [embedding] if beside is None else [embedding, beside], who, step=step):
        try:
            x = arrow.finite(arrow.matrix(batch.arrow(embedding), embedding), embedding)
        except ValueError as error:
            raise ValueError(f"{who}, counting rows from {start}: {error}") from error
        if width not in (None, x.shape[1]):
            raise ValueError(f"column {embedding!r} is ragged: width {width} up to row {start}, then {x.shape[1]}")
        if len(x) and not x.shape[1]:
            raise ValueError(f"{who}: the rows of {embedding!r} hold no numbers at all; embed them again")
        yield Block(x, None if beside is None else batch.arrow(beside), start)
        width, start = x.shape[1], start + len(x)
    if start == 0:
        raise ValueError(f"{who} got an empty dataset; there is nothing to learn from")


def as_float32(x: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Rows as float32, in which everything is learned; a ValueError where that has no numbers as large, or as small."""
    with np.errstate(over="ignore"):
        narrow: NDArray[np.float32] = x.astype(np.float32, copy=False)
    if x.dtype.itemsize > 4 and not np.isfinite(narrow).all():
        raise ValueError(
            f"column {name!r} has numbers up to {float(np.abs(x).max()):.3g}, beyond what float32 holds (3.4e38); "
            "divide them by a constant first"
        )
    if x.dtype.itemsize > 4 and x.any() and not narrow.any():
        raise ValueError(
            f"column {name!r} has numbers up to {float(np.abs(x).max()):.3g} only, and all are 0 in float32 "
            "(which begins at 1e-45); multiply them by a constant first"
        )
    return narrow


class Texts(NamedTuple):
    """Rows that stand together: their texts (a string array, or lists of token ids), which are null, and digests."""

    array: pa.Array
    null: NDArray[np.bool_]
    digests: NDArray[np.uint64]
    start: int


def text_blocks(ds: Any, text: str | Sequence[str], who: str, ids: bool = False) -> Iterator[Texts]:
    """The texts of a dataset block by block, with a bar.

    Args:
        ds: a `Dataset`, read through Arrow's buffers, or an `IterableDataset`.
        text: column, columns, nested path `column.field` or column of chats, as for `texts_of`.
        who: who reads, for the messages.
        ids: whether a column of lists of integers may stand in for texts, as token ids.

    Raises:
        MissingColumnError: no such column.
        TypeError: a `DatasetDict`.
        ValueError: no rows, or nothing but nulls.
    """
    start = some = 0
    for batch in batches(ds, columns_of(text), who, desc=who):
        held = texts_of(batch, text, ids)
        yield held._replace(start=start)
        start, some = start + batch.n, some + int((~held.null).sum())
    if start == 0:
        raise ValueError(f"{who} got an empty dataset; there is nothing to compare")
    if some == 0:
        raise ValueError(f"{who}: all {start} rows of {text!r} are null; name a column with texts")


def texts_of(batch: Batch, text: str | Sequence[str], ids: bool = False) -> Texts:
    """The texts of a batch; texts of several columns are joined by a space, chats are `role: content` lines.

    Args:
        batch: the rows.
        text: a column, several, a nested path `column.field`, or a column of chats.
        ids: whether a column of lists of integers may stand in for texts, as token ids.

    Raises:
        MissingColumnError: no such column.
        TypeError: a row holds something else than text or a chat.
        ValueError: a text with half of a surrogate pair.
    """
    names = columns_of(text)
    array = _single(batch, names[0], ids) if len(names) == 1 else None
    if array is None:
        rows, bad, _ = read_texts(batch, names)
        array = string_array([None if bad.get(i) == NULL else t for i, t in enumerate(rows)], batch.who)
    null = np.asarray(pc.is_null(array).to_numpy(zero_copy_only=False)) if array.null_count else np.zeros(batch.n, bool)
    return Texts(array, null, identity.digests(array), 0)


def _single(batch: Batch, name: str, ids: bool) -> pa.Array | None:
    """One column as it is stored, if it holds strings (or token ids)."""
    values = read_column(batch, name)
    if not isinstance(values, pa.Array):
        values = values.tolist() if isinstance(values, np.ndarray) else list(values)
        first = next((v for v in values if v is not None), None)
        numbers = ids and first is not None and not isinstance(first, str) and _is_ids(first)
        if not (all(v is None or isinstance(v, str) for v in values) or numbers):
            return None
        values = pa.array(values, pa.list_(pa.int64())) if numbers else string_array(values, batch.who)
    kind = values.type
    if pa.types.is_null(kind):
        return values.cast(pa.large_string())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return values
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return values.cast(pa.large_list(pa.int64())) if ids and listed and pa.types.is_integer(kind.value_type) else None


def _is_ids(value: Any) -> bool:
    held = np.asarray(value)
    return held.ndim == 1 and (held.dtype.kind in "iu" or len(held) == 0)
