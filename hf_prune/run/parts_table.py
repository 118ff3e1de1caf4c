"""Many part files as one memory-mapped block of a `datasets` table, pickled as the paths of the files it shows.

`datasets` would make a block of each file, cut the data at their edges, and pickle the data once for each piece: a
table in memory as many times as there are parts.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from datasets.table import MemoryMappedTable

File = tuple[str, int]  # path, rows


class PartsTable(MemoryMappedTable):  # type: ignore[misc]
    """Rows [first, stop) of the files put together, and what was done to the columns since (`replays`)."""

    def __init__(self, table: pa.Table, files: Sequence[File], first: int, stop: int, replays: Sequence[Any]) -> None:
        super().__init__(table, files[0][0], list(replays))
        self.files, self.first, self.stop = tuple(files), first, stop

    @classmethod
    def from_files(cls, files: Sequence[File]) -> PartsTable:
        """Map all the files. They have one schema."""
        return cls(_mapped(files), files, 0, sum(rows for _, rows in files), ())

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "first": self.first, "stop": self.stop, "replays": self.replays}

    def __setstate__(self, state: dict[str, Any]) -> None:
        table = _mapped(state["files"]).slice(state["first"], state["stop"] - state["first"])
        self.__init__(self._apply_replays(table, state["replays"]), **state)  # type: ignore[misc]

    def slice(self, offset: int = 0, length: int | None = None) -> PartsTable:
        """Rows [offset, offset + length); only their files are kept."""
        if any(name == "filter" for name, _, _ in self.replays):  # rows are no longer those of the files
            return self._then("slice", offset, length)
        left = self.table.num_rows - offset
        length = max(0, left if length is None else min(length, left))
        first, stop = self.first + offset, self.first + offset + length
        files: list[File] = []
        start: int | None = None
        end = 0
        for path, rows in self.files:
            begin, end = end, end + rows
            if begin < stop and end > first or (length == 0 and not files):
                files.append((path, rows))
                start = begin if start is None else start
        start = start or 0
        table = self.fast_slice(offset, length)
        shift = start if length else first
        return PartsTable(table, files, first - shift, stop - shift, self.replays)

    def _then(self, name: str, *args: Any, **kwargs: Any) -> PartsTable:
        step = (name, copy.deepcopy(args), copy.deepcopy(kwargs))
        table = self._apply_replays(self.table, [step])
        return PartsTable(table, self.files, self.first, self.stop, [*self.replays, step])


def _operation(name: str) -> Any:
    def then(self: PartsTable, *args: Any, **kwargs: Any) -> PartsTable:
        return self._then(name, *args, **kwargs)

    then.__name__ = name
    return then


for _name in (
    "filter flatten combine_chunks cast replace_schema_metadata add_column append_column remove_column set_column "
    "rename_columns drop select"
).split():
    setattr(PartsTable, _name, _operation(_name))


def _mapped(files: Sequence[File]) -> pa.Table:
    tables = []
    for path, _ in files:
        with pa.memory_map(path) as source:
            tables.append(pa.ipc.open_stream(source).read_all())
    return pa.concat_tables(tables)
