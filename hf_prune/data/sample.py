"""Samples to fit on: drawn by hashed content and put in canonical order, so that row order does not matter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from hf_prune.checks import check_dataset
from hf_prune.data import arrow, identity
from hf_prune.data.batch import Batch, missing_column

STEP = 1 << 15


class Sample(NamedTuple):
    """Rows to fit on: (m, d) float32 in canonical order, and what they were drawn from."""

    x: np.ndarray
    facts: dict[str, Any]


class Block(NamedTuple):
    """Rows that stand together in the dataset: (b, d) finite floats, a second column if any, the first row's number."""

    x: np.ndarray
    beside: pa.Array | None
    start: int


def blocks(ds: Any, embedding: str, who: str, beside: str | None = None) -> Iterator[Block]:
    """Read an embedding column, and one beside it, in checked blocks.

    Args:
        ds: a `Dataset` (read through Arrow's buffers) or an `IterableDataset`.
        embedding: column of rows of floats.
        who: who reads, for the messages.
        beside: a second column to read along.

    Raises:
        KeyError: no such column.
        TypeError: a `DatasetDict`, or a column of another type.
        ValueError: no rows; a null, ragged, non-finite or empty row.
    """
    names = [embedding] if beside is None else [embedding, beside]
    width, start = None, 0
    for held in columns(ds, names, who):
        try:
            x = arrow.finite(arrow.matrix(held[embedding], embedding), embedding)
        except ValueError as error:
            raise ValueError(f"{who}.fit, counting rows from {start}: {error}") from error
        if width not in (None, x.shape[1]):
            raise ValueError(f"column {embedding!r} is ragged: width {width} up to row {start}, then {x.shape[1]}")
        if len(x) and not x.shape[1]:
            raise ValueError(f"{who}.fit: the rows of {embedding!r} hold no numbers at all; embed them again")
        yield Block(x, None if beside is None else held[beside], start)
        width, start = x.shape[1], start + len(x)
    if start == 0:
        raise ValueError(f"{who}.fit got an empty dataset; there is nothing to learn from")


def canonical_sample(
    ds: Any, embedding: str, who: str, size: int | None = None, seed: int = 0, row_id: str | None = None
) -> Sample:
    """Draw at most `size` non-zero rows by seeded hash of their id, or else of their content, in the order of the hash.

    Ids are better where there are any: an embedding computed with another number of threads differs in its last bits,
    and by content that would be another row. Copies of a row weigh as often as they occur. Needs memory for
    `2 * size` rows, whatever the dataset's length.

    Raises:
        ValueError: as `blocks`; also if all rows are zero.
    """
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    bound, waiting, total, zeros = np.uint64(2**64 - 1), 0, 0, 0
    content = np.zeros((), np.uint64)
    by_id = row_id if ds.column_names is not None and row_id in ds.column_names else None
    for block in blocks(ds, embedding, who, by_id):
        keys = identity.digests(block.x)
        content += identity.seeded(keys, 0).sum(dtype=np.uint64)  # wraps: a sum modulo 2**64 knows no order
        hashes = identity.seeded(keys if block.beside is None else identity.digests(block.beside), seed)
        some = np.asarray(block.x.any(axis=1))
        total, zeros = total + len(some), zeros + int((~some).sum())
        some &= hashes <= bound
        parts.append((hashes[some], as_float32(block.x[some], embedding)))
        waiting += int(some.sum())
        if size is not None and waiting > 2 * size:
            parts = [_lowest(parts, size)]
            bound, waiting = parts[0][0][-1], size
    hashes, x = _lowest(parts, size)
    if not len(x):
        raise ValueError(f"{who}.fit: all {total} rows of {embedding!r} are zero vectors; embed them again")
    facts = {"rows": total, "sampled": len(x), "column": embedding, "content": f"{int(content):016x}"}
    facts["drawn_by"] = by_id or "content"
    return Sample(x, {**facts, "zero_rows": zeros} if zeros else facts)


def as_float32(x: np.ndarray, name: str) -> np.ndarray:
    """Rows as float32, in which everything is learned; a ValueError where that has no numbers as large, or as small."""
    with np.errstate(over="ignore"):
        narrow: np.ndarray = x.astype(np.float32, copy=False)
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


def _lowest(parts: list[tuple[np.ndarray, np.ndarray]], size: int | None) -> tuple[np.ndarray, np.ndarray]:
    hashes, x = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
    order = np.argsort(hashes, kind="stable")[:size]
    return hashes[order], x[order]


def columns(ds: Any, names: list[str], who: str, step: int = STEP) -> Iterator[dict[str, pa.Array]]:
    """Read columns side by side in blocks of up to `step` rows: of a `Dataset` through Arrow's buffers, or of a stream.

    Raises:
        KeyError: no such column.
        TypeError: a `DatasetDict`.
    """
    check_dataset(ds, f"{who}.fit", streams=True)
    for name in names:
        if ds.column_names is not None and name not in ds.column_names:
            raise missing_column(name, ds.column_names, f"{who}.fit")
    if not hasattr(ds, "data"):  # a stream
        for rows_ in ds.select_columns(names).with_format(None).iter(step):
            batch = Batch(rows_, who)
            yield {name: batch.arrow(name) for name in names}
        return
    whole = {name: arrow.column_array(ds, name) for name in names}
    for start in range(0, len(ds), step):
        yield {name: arrow.one(column.slice(start, step)) for name, column in whole.items()}
