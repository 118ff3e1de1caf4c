"""Texts of a dataset as Arrow arrays with their digests: the same from a fit and from a batch to be scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hf_prune.checks import check_dataset
from hf_prune.data import identity
from hf_prune.data.arrow import gather, positions_of
from hf_prune.data.batch import Batch, missing_column
from hf_prune.data.lookup import find
from hf_prune.data.progress import shown
from hf_prune.data.texts import NULL, read_column, read_texts
from hf_prune.data.utf8 import string_array

STEP, STREAM_STEP = 1 << 15, 1 << 12  # rows at a time; those of a stream are Python objects


class Texts(NamedTuple):
    """Rows that stand together: their texts (a string array, or lists of token ids), which are null, and digests."""

    array: pa.Array
    null: NDArray[np.bool_]
    digests: NDArray[np.uint64]
    start: int


def columns_of(text: str | Sequence[str]) -> tuple[str, ...]:
    """`text=` as a tuple of columns.

    Raises:
        ValueError: it names none.
    """
    names = (text,) if isinstance(text, str) else tuple(text)
    if not names or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"text={text!r} names no column; give a column, or a list of columns")
    return names


def read(batch: Batch, text: str | Sequence[str], ids: bool = False) -> Texts:
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
        texts, bad, _ = read_texts(batch, names)
        array = string_array([None if bad.get(i) == NULL else t for i, t in enumerate(texts)], batch.who)
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
    found = np.asarray(value)
    return found.ndim == 1 and (found.dtype.kind in "iu" or len(found) == 0)


def blocks(ds: Any, text: str | Sequence[str], who: str, ids: bool = False) -> Iterator[Texts]:
    """Read the texts of a dataset block by block.

    Args:
        ds: a `Dataset`, read through Arrow's buffers, or an `IterableDataset`.
        text, ids: as for `read`.
        who: who reads, for the messages.

    Raises:
        TypeError: a `DatasetDict`.
        ValueError: no rows, or nothing but nulls.
    """
    check_dataset(ds, f"{who}.fit", streams=True)
    names, there = columns_of(text), ds.column_names
    needed = list(dict.fromkeys(n if there is None or n in there else n.split(".")[0] for n in names))
    for name in needed:
        if there is not None and name not in there:
            raise missing_column(name, there, f"{who}.fit")
    start = some = 0
    for batch in shown(_batches(ds, needed, f"{who}.fit"), ds, f"{who}.fit", lambda batch: batch.n):
        found = read(batch, text, ids)
        yield found._replace(start=start)
        start, some = start + batch.n, some + int((~found.null).sum())
    if start == 0:
        raise ValueError(f"{who}.fit got an empty dataset; there is nothing to compare")
    if some == 0:
        raise ValueError(f"{who}.fit: all {start} rows of {text!r} are null; name a column with texts")


def _batches(ds: Any, names: list[str], who: str) -> Iterator[Batch]:
    if not hasattr(ds, "data"):  # a stream
        for found in ds.select_columns(names).with_format(None).iter(STREAM_STEP):
            yield Batch(found, who)
        return
    table, where = ds.data.table.select(names), positions_of(ds)
    for part in gather(table, where) if where is not None else table.to_batches(max_chunksize=STEP):
        if part.num_rows:
            yield Batch(part, who)


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
    content = 0
    for at in range(0, len(digests), STEP):  # so that memory is that of a step
        part = slice(at, at + STEP)
        content += int((identity.seeded(digests[part], 0) * copies[part].astype(np.uint64)).sum(dtype=np.uint64))
    return {
        "rows": int(copies.sum()) + nulls,
        "texts": len(digests),
        "nulls": nulls,
        "column": text if isinstance(text, str) else list(text),
        "content": f"{content % 2**64:016x}",
    }
