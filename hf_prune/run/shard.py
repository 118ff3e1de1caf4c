"""Reading and scoring one shard: batches that decode only what is read, and see what was written before."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from hf_prune.data.arrow import SLAB_BYTES, SLAB_ROWS, ascending, positions_of, to_arrow
from hf_prune.data.batch import Batch
from hf_prune.data.identity import digests
from hf_prune.data.layout import merged
from hf_prune.run.parts import write_part
from hf_prune.scorer import feature_of

if TYPE_CHECKING:
    from hf_prune.scorer import Scorer


class Reader:
    """A dataset's stored columns by ranges of rows, in the dataset's order; nothing is decoded or flattened."""

    def __init__(self, ds: Any, written: Mapping[str, str]) -> None:
        from datasets import Features
        from datasets.formatting import get_formatter

        self.names = tuple(ds.column_names)
        self.features = Features({**ds.features, **{name: feature_of(t) for name, t in written.items()}})
        self.formatter = get_formatter(None, features=self.features)
        self.table = ds.data.table
        self.where = positions_of(ds)
        self._batches: dict[str, tuple[list[pa.RecordBatch], np.ndarray]] = {}
        self._ahead: dict[str, int] = {}
        self._held: dict[str, tuple[int, int, pa.ChunkedArray | None]] = {}
        self._near: tuple[int, int, pa.Table] = (0, -1, self.table)

    def near(self, first: int, stop: int) -> None:
        """Say which rows come next: batches are cut from a slice of the table, or gathered some ahead."""
        self._near = (first, stop, self.table.slice(first, stop - first) if self.where is None else self.table)

    def column(self, name: str, first: int, stop: int) -> pa.ChunkedArray:
        """Rows [first, stop) of a column."""
        if self.where is None:
            low, high, table = self._near
            if not low <= first <= stop <= high:
                low, table = 0, self.table
            return table.column(name).slice(first - low, stop - first)
        low, high, held = self._held.get(name, (0, -1, None))
        if held is None or not low <= first <= stop <= high:
            if name not in self._ahead:
                column = self.table.column(name)
                self._ahead[name] = int(min(SLAB_ROWS, SLAB_BYTES // max(1.0, column.nbytes / len(column))))
            low, high = first, max(stop, min(first + self._ahead[name], self._near[1]))
            held = self._gather(name, self.where[low:high])
            self._held[name] = low, high, held
        return held.slice(first - low, stop - first)

    def _gather(self, name: str, where: np.ndarray) -> pa.ChunkedArray:
        """Rows `where` of a column: sorted, so that each record batch is visited once, then put back in order."""
        if name not in self._batches:
            batches = self.table.select([name]).to_batches()
            self._batches[name] = batches, np.cumsum([0] + [batch.num_rows for batch in batches])
        batches, starts = self._batches[name]
        order = np.argsort(where, kind="stable")
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        found = pa.Table.from_batches(list(ascending(batches, starts, where[order])), self.table.select([name]).schema)
        return found.combine_chunks().column(0).take(pa.array(back))

    def decode(self, name: str, column: pa.ChunkedArray) -> Any:
        """A column as `map` hands it over."""
        return self.formatter.format_column(pa.table({name: column}))


class Rows(Mapping[str, Any]):
    """Rows [first, stop) as `Batch` takes them: stored columns, and those that earlier scorers wrote.

    `pa_table` and `keys_to_format` are what `Batch` looks for to read Arrow's buffers. Here they hold for every column
    at any time, for nothing is changed in place; a column that two scorers read is decoded once.
    """

    def __init__(self, reader: Reader, first: int, stop: int) -> None:
        self.reader, self.first, self.stop = reader, first, stop
        self.num_rows = stop - first
        self.read: set[str] = set()
        self.added: dict[str, pa.Array] = {}
        self._decoded: dict[str, Any] = {}

    @property
    def pa_table(self) -> Rows:
        return self

    @property
    def keys_to_format(self) -> Rows:
        return self

    @property
    def formatter(self) -> Any:
        """What knows the columns' features."""
        return self.reader.formatter

    def column(self, name: str) -> pa.ChunkedArray:
        """The stored column, or the one an earlier scorer wrote."""
        if name in self.added:
            return pa.chunked_array([self.added[name]])
        self.read.add(name)
        return self.reader.column(name, self.first, self.stop)

    def add(self, name: str, values: pa.Array) -> None:
        """Take in what a scorer wrote."""
        self.added[name] = values

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        if name not in self._decoded:
            self._decoded[name] = self.reader.decode(name, self.column(name))
        return self._decoded[name]

    def __contains__(self, name: object) -> bool:
        return name in self.added or name in self.reader.names

    def __iter__(self) -> Iterator[str]:
        yield from self.reader.names
        yield from self.added

    def __len__(self) -> int:
        return len(self.reader.names) + len(self.added)


def input_digest(reader: Reader, reads: Sequence[str], first: int, stop: int, step: int = 1 << 14) -> str:
    """Digest of the content of the columns `reads` in rows [first, stop): names, types and values, not files."""
    state = xxhash.xxh3_128(str(stop - first).encode())
    reader.near(first, stop)
    for name in sorted(reads):
        state.update(f"|{name}|{reader.table.schema.field(name).type}|".encode())
        for low in range(first, stop, step):
            for data in _content(reader.column(name, low, min(low + step, stop))):
                state.update(data)
    return state.hexdigest()


def _content(column: pa.ChunkedArray) -> list[Any]:
    """Bytes that tell these values from others of their type, however they are cut into chunks.

    Numbers and lists of numbers without nulls are their buffers, sixteen times faster than a digest of each row.
    """
    kind, t = column.type, pa.types
    lists = t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind)
    item = kind.value_type if lists else kind
    if column.null_count == 0 and (t.is_integer(item) or t.is_floating(item)):
        values = [chunk.flatten() for chunk in column.chunks] if lists else column.chunks
        if not any(array.null_count for array in values):
            found: list[Any] = [b"n"]
            if lists:
                found += [pc.list_value_length(chunk).to_numpy().astype(np.int64).data for chunk in column.chunks]
            return found + [array.to_numpy().view(np.uint8).data for array in values]
    return [b"d", digests(column).data]


def score_shard(
    reader: Reader,
    scorers: Sequence[Scorer],
    schema: pa.Schema,
    folder: Path,
    index: int,
    shard: tuple[int, int],
    batch_size: int = 1000,
    rank: int | None = None,
    progress: Callable[[int], Any] = lambda rows: None,
) -> dict[str, Any]:
    """Compute one shard and write its part; an engine needs these arguments and nothing else.

    Returns:
        What the part's JSON says of it: rows, columns read, digest of the input, digest of the file, FLOPs, seconds.
    """
    first, stop = shard
    reads: set[str] = set()
    flops = 0.0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal flops
        reader.near(first, stop)
        for low in range(first, stop, batch_size):
            rows = Rows(reader, low, min(low + batch_size, stop))
            try:
                flops += score_rows(rows, scorers, rank)
            except Exception as error:
                error.add_note(f"while scoring rows {low} to {rows.stop - 1} (shard {index})")
                raise
            reads.update(rows.read)
            yield pa.RecordBatch.from_arrays([rows.added[name] for name in schema.names], schema=schema)
            progress(rows.num_rows)

    begin = time.perf_counter()
    written = write_part(folder, index, schema, merged(batches(), schema))
    seconds = time.perf_counter() - begin
    facts = {"index": index, "rows": stop - first, "reads": sorted(reads), "flops": flops, "seconds": seconds}
    return {**facts, **written, "input": input_digest(reader, sorted(reads), first, stop)}


def score_rows(rows: Rows, scorers: Sequence[Scorer], rank: int | None) -> float:
    """Call the scorers in their order, each with what those before it wrote; return the FLOPs."""
    flops = 0.0
    for scorer in scorers:
        who = type(scorer).__name__
        written = scorer(Batch(rows, who), rank)
        read = set(rows.read)
        flops += float(scorer.flops(Batch(rows, who)))
        rows.read = read  # what only the cost depends on is no input of the scores
        for name, dtype in scorer.columns().items():
            rows.add(name, to_arrow(written[name], dtype))
    return flops
