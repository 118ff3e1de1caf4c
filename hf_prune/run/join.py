"""Putting score columns beside a dataset's table: parts are memory-mapped, no row of the data is rewritten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from hf_prune.data.arrow import gather, positions_of
from hf_prune.data.files import is_sealed, write_stream
from hf_prune.data.layout import IN_MEMORY_BYTES, like_format, merged
from hf_prune.run.parts import explained
from hf_prune.scorer import feature_of


def written_schema(columns: dict[str, str]) -> pa.Schema:
    """Arrow schema of the score columns, without metadata."""
    from datasets import Features

    schema: pa.Schema = Features({name: feature_of(dtype) for name, dtype in columns.items()}).arrow_schema
    return schema.remove_metadata()


def join(
    ds: Any, parts: Sequence[Path], columns: dict[str, str], fingerprint: str, folder: Path, facts: Sequence[Any]
) -> Any:
    """`ds` with the columns in the part files, row by row.

    Where `ds` has an indices mapping it is kept: the columns are laid out as the table below it is, null in rows that
    the mapping leaves out. That layout takes (rows of that table) x (bytes of the new columns): in memory up to 64 MB,
    in a file in `folder` beyond.

    Args:
        parts: part files, in the order of the rows.
        columns: their columns and types.
        fingerprint: of the new dataset.
        folder: for the layout, where it is large.
        facts: what is known of each part: `rows`, and `file`, the digest.
    """
    from datasets import Dataset
    from datasets.arrow_dataset import update_metadata_with_features
    from datasets.table import ConcatenationTable

    from hf_prune.run.parts_table import PartsTable

    beside = PartsTable.from_files([(str(path), entry["rows"]) for path, entry in zip(parts, facts, strict=True)])
    owner = _owner(ds)
    if owner is not None:
        beside = _laid_out(beside.table, owner, folder, [entry["file"] for entry in facts])
    blocks, first = [], 0
    for row in getattr(ds._data, "blocks", [[ds._data]]):
        blocks.append([*row, beside.slice(first, row[0].num_rows)])
        first += row[0].num_rows
    info = ds.info.copy()
    info.features = type(ds.features)({**ds.features, **{name: feature_of(dtype) for name, dtype in columns.items()}})
    table = update_metadata_with_features(ConcatenationTable.from_blocks(blocks), info.features)
    out = Dataset(table, info=info, split=ds.split, indices_table=ds._indices, fingerprint=fingerprint)
    return like_format(out, ds, list(columns))


def _owner(ds: Any) -> NDArray[np.int64] | None:
    """Logical row of each row of the table below, -1 where there is none; None without an indices mapping.

    A row that the mapping shows twice has one score: a scorer looks at the row alone.
    """
    where = positions_of(ds)
    if where is None:
        return None
    owner = np.full(ds.data.num_rows, -1, np.int64)
    owner[where] = np.arange(len(where))
    return owner


def _laid_out(table: pa.Table, owner: NDArray[np.int64], folder: Path, names: Sequence[str]) -> Any:
    """Rows `owner` of the table, null for -1, as one block: in memory if small, else memory-mapped."""
    from datasets.table import InMemoryTable, MemoryMappedTable

    if table.nbytes / table.num_rows * len(owner) < IN_MEMORY_BYTES:
        laid = pa.Table.from_batches(_batches(table, owner), schema=table.schema)
        return InMemoryTable(laid.combine_chunks())
    state = xxhash.xxh3_128("|".join(names).encode())
    state.update(owner.tobytes())
    path = folder / f"joined-{state.hexdigest()}.arrow"
    if not is_sealed(path):  # named by what it is made of
        write_stream(path, table.schema, merged(_batches(table, owner), table.schema), explained, seal=True)
    return MemoryMappedTable.from_file(str(path))


def _batches(table: pa.Table, owner: NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
    there = owner >= 0
    # rows that are missing read the row before them: an ascending mapping stays ascending
    last = np.maximum.accumulate(np.where(there, np.arange(len(owner)), 0))
    done = 0
    for batch in gather(table, np.maximum(owner[last], 0)):
        absent = ~there[done : done + batch.num_rows]
        done += batch.num_rows
        yield batch.take(pa.array(np.arange(batch.num_rows), mask=absent)) if absent.any() else batch
