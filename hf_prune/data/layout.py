"""Writing the kept rows of a dataset: a contiguous Arrow file, a table in memory, or an indices mapping."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from hf_prune.checks import check_choice
from hf_prune.data.arrow import gather, positions_of, row_bytes
from hf_prune.data.files import FULL, is_sealed, scratch, sweep, write_stream
from hf_prune.data.types import Layout

# Reading through an indices mapping costs about 8 us a row in every pass, copying a row costs its bytes once:
# tests/benchmarks/bench_prune.py --switch finds where the two meet.
CONTIGUOUS_ROW_BYTES = 4096
IN_MEMORY_BYTES = 64 << 20
BATCH_ROWS = 1000  # datasets writes batches of this size as well
BATCH_BYTES = 1 << 20


def check_layout(layout: str) -> None:
    """Raise a ValueError for a layout that does not exist."""
    check_choice("layout", layout, get_args(Layout))


def take_rows(ds: Any, rows: NDArray[np.int64], layout: str = "auto", fingerprint: str | None = None) -> Any:
    """The rows `rows` (m,) of `ds`, ascending, with its features, split and format.

    The fingerprint is a hash of the parent's and of `rows`, so that later `map` calls hit their cache in
    another process. A contiguous copy lies in the datasets cache beside the parent's files (for a dataset in
    memory: in memory up to 64 MB, else in the temporary cache of this process), under a name made of the
    fingerprint; where a complete one is already there it is used.

    Raises:
        OSError: the disk is full, or the cache folder may not be written.
    """
    from datasets.fingerprint import Hasher

    check_layout(layout)
    if ds.list_indexes():
        raise ValueError(f"the dataset has search indexes {ds.list_indexes()}; drop_index() them first")
    if fingerprint is None:
        fingerprint = Hasher.hash([ds._fingerprint, "hf_prune.rows", xxhash.xxh3_128_hexdigest(rows.tobytes())])
    if len(rows) == 0:
        return _dataset(ds, _in_memory(pa.Table.from_batches([], schema=ds.data.schema)), fingerprint)
    one_range = int(rows[-1]) - int(rows[0]) + 1 == len(rows)
    if one_range and ds._indices is None:
        return ds.select(range(int(rows[0]), int(rows[-1]) + 1), new_fingerprint=fingerprint)
    if layout == "indices" or (layout == "auto" and row_bytes(ds.data) > CONTIGUOUS_ROW_BYTES):
        return ds.select(rows, new_fingerprint=fingerprint)
    return _contiguous(ds, rows, fingerprint)


def _contiguous(ds: Any, rows: NDArray[np.int64], fingerprint: str) -> Any:
    from datasets.table import MemoryMappedTable

    where = positions_of(ds)
    where = rows if where is None else where[rows]
    if not ds.cache_files and row_bytes(ds.data) * len(rows) < IN_MEMORY_BYTES:
        batches = gather(ds.data.table, where)
        return _dataset(ds, _in_memory(pa.Table.from_batches(batches, schema=ds.data.schema)), fingerprint)
    path = _cache_path(ds, fingerprint)
    table = _complete(path, ds.data.schema, len(rows))
    if table is None:
        sweep(path.parent)
        batches = merged(gather(ds.data.table, where), ds.data.schema)
        write_stream(path, ds.data.schema, batches, _explained, seal=True)
        table = MemoryMappedTable.from_file(str(path))
    return _dataset(ds, table, fingerprint)


def _dataset(ds: Any, table: Any, fingerprint: str) -> Any:
    from datasets import Dataset

    # not Dataset.from_file: it loses the split, and its fingerprint changes with the file's time
    return like_format(Dataset(table, info=ds.info.copy(), split=ds.split, fingerprint=fingerprint), ds, [])


def _in_memory(table: pa.Table) -> Any:
    from datasets.table import InMemoryTable

    return InMemoryTable(table)


def _cache_path(ds: Any, fingerprint: str) -> Path:
    """Beside the parent's files, named as `cleanup_cache_files` expects; else in the temporary cache."""
    import datasets

    if datasets.is_caching_enabled() and ds.cache_files:
        return Path(ds.cache_files[0]["filename"]).parent / f"cache-prune-{fingerprint}.arrow"
    return temporary_cache() / f"cache-prune-{uuid.uuid4().hex}.arrow"


def temporary_cache() -> Path:
    """A folder for files that end with this process; unlike that of `datasets`, one that is killed has it swept."""
    global _temporary
    if _temporary is None or _temporary[0] != os.getpid():
        stack = contextlib.ExitStack()
        _temporary = os.getpid(), stack.enter_context(scratch())
        atexit.register(_close, stack, os.getpid())
    return _temporary[1]


_temporary: tuple[int, Path] | None = None


def _close(stack: contextlib.ExitStack, pid: int) -> None:
    if os.getpid() == pid:  # not in a fork of it
        stack.close()


def _complete(path: Path, schema: pa.Schema, n: int) -> Any | None:
    from datasets.table import MemoryMappedTable

    if not is_sealed(path):  # cut off, damaged or foreign: it is written anew
        return None
    table = MemoryMappedTable.from_file(str(path))
    return table if table.num_rows == n and table.schema.equals(schema) else None


def merged(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of at least 1,000 rows or 1 MB: a small share kept leaves no crumbs."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        held.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= BATCH_ROWS or size >= BATCH_BYTES:
            yield from _joined(held, schema)
            held, rows, size = [], 0, 0
    if held:
        yield from _joined(held, schema)


def _joined(held: list[pa.RecordBatch], schema: pa.Schema) -> list[pa.RecordBatch]:
    if len(held) == 1:
        return held
    joined: list[pa.RecordBatch] = pa.Table.from_batches(held, schema=schema).combine_chunks().to_batches()
    return joined


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    hint = 'or pass layout="indices", which writes nothing'
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            reason = f"no space left in {folder} for the kept rows; free some, {hint}"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = f"the cache folder {folder} is not writable; make it so, {hint}"
        else:
            raise
        raise OSError(error.errno, reason) from error


def with_column(ds: Any, name: str, values: pa.Array, fingerprint: str) -> Any:
    """`ds` with one more column (n,), put beside its table: no row is rewritten, an indices mapping stays.

    The column itself is held in memory. Where the mapping leaves rows out, the column is null there; a
    mapping that shows a row twice cannot be kept, and the dataset is copied into a contiguous one first.
    """
    from datasets import Dataset
    from datasets.arrow_dataset import update_metadata_with_features
    from datasets.table import InMemoryTable, concat_tables

    where = positions_of(ds)
    if where is not None:
        owner = np.full(ds.data.num_rows, -1, np.int64)
        owner[where] = np.arange(len(where))
        if np.count_nonzero(owner >= 0) < len(where):
            ds = take_rows(ds, np.arange(len(ds)), "contiguous", fingerprint + "-rows")
        else:
            values = values.take(pa.array(owner, mask=owner < 0))
    beside = InMemoryTable(pa.table({name: values}))
    info = ds.info.copy()
    info.features = type(ds.features)({**ds.features, **type(ds.features).from_arrow_schema(beside.schema)})
    table = concat_tables([ds._data, beside], axis=1) if ds.column_names else beside
    table = update_metadata_with_features(table, info.features)
    out = Dataset(table, info=info, split=ds.split, indices_table=ds._indices, fingerprint=fingerprint)
    return like_format(out, ds, [name])


def like_format(out: Any, ds: Any, new: list[str]) -> Any:
    """Give `out` the format of `ds`; columns that are `new` are shown too."""
    if ds.format["type"] is not None or ds._format_columns is not None:
        shown = None if ds._format_columns is None else [*ds._format_columns, *new]
        out.set_format(
            ds.format["type"],
            shown,
            output_all_columns=ds.format["output_all_columns"],
            **ds.format["format_kwargs"],
        )
    return out
