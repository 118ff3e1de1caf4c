"""Files that are whole or not there: written under a temporary name, synced, renamed."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Explain = Callable[[Path], AbstractContextManager[None]]


def write_stream(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch], explained: Explain) -> None:
    """Write an Arrow IPC stream.

    Args:
        path: the file.
        schema: of the batches.
        batches: what to write; what raises while they are made is not the disk's fault.
        explained: gives errors of the disk in a folder their reason and the next step.

    Raises:
        OSError: the disk is full or may not be written; nothing is left behind.
    """
    temporary = _temporary(path)
    folder = path.parent
    try:
        with explained(folder):
            sink = pa.OSFile(str(temporary), "wb")
        try:
            with explained(folder):
                writer = pa.ipc.new_stream(sink, schema)
            for batch in batches:
                with explained(folder):
                    writer.write_batch(batch)
            with explained(folder):
                writer.close()
        finally:
            with explained(folder):
                sink.close()
        with explained(folder):
            _sync(temporary)
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_parquet(path: Path, table: pa.Table, explained: Explain) -> None:
    """Write a table of numbers as Parquet, floats with their bytes split: what changes slowly is compressed together.

    Raises:
        OSError: the disk is full or may not be written; nothing is left behind.
    """
    temporary = _temporary(path)
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    try:
        with explained(path.parent):
            pq.write_table(table, temporary, compression="zstd", use_dictionary=False, use_byte_stream_split=floats)
            _sync(temporary)
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, explained: Explain, sync: bool = False) -> None:
    """Write a small file; unsynced, it may be cut off by a crash, for readers who notice that."""
    temporary = _temporary(path)
    try:
        with explained(path.parent):
            temporary.write_text(text, encoding="utf-8")
            if sync:
                _sync(temporary)
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.hf_prune_tmp")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
