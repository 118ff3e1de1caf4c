"""What lies in the folder of an epoch of a `TrainingLog`: its report and its parts, checked when read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hf_prune.checks import check_digest, check_inside
from hf_prune.data.files import file_digest, read_json, reading
from hf_prune.dynamics.format import REPORT, SHOWN, check_keys, epoch_folder, unsealed

CHOICE = "put its folder back from a copy, leave the epoch out (epochs=...), or record the run again"
TYPES = {"row": pa.int64(), "step": pa.int64(), "correct": pa.bool_(), "tokens": pa.int32()}


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """What is worth knowing of an epoch beside its numbers.

    Args:
        epoch: number of the epoch, from 0.
        rows: number of rows recorded, each once.
        nan: number of rows whose loss was not finite; their statistics are NaN.
        nan_ids: ids of the first of those rows.
        empty: number of rows of a language model without a labelled token; their statistics are NaN as well.
        padding: number of presentations left out, with which a sampler filled the last batches of several processes.
        parts: size in bytes of each finished part file, by name.
        digests: digest of each part file, by name; empty in logs from before there were digests.
        probabilities: digest of the file of probabilities; None where `divergence` is not recorded.
    """

    epoch: int
    rows: int
    nan: int
    nan_ids: Sequence[Any]
    empty: int
    padding: int
    parts: Mapping[str, int]
    digests: Mapping[str, str] = field(default_factory=dict)
    probabilities: str | None = None


def read_report(folder: Path, epoch: int, rows: int) -> EpochReport:
    """The report of a finished epoch of n `rows`, whose parts are there.

    Raises:
        DamagedFileError: the report or a part is missing, cut off or changed.
    """
    at = epoch_folder(folder, epoch)
    with reading(at, f"recording of epoch {epoch}", CHOICE):
        if not (at / REPORT).is_file():
            raise ValueError(f"{REPORT} is missing")
        found = read_json(at / REPORT, f"report of epoch {epoch}", CHOICE)
        facts = unsealed(found, required=False)
        fields = set(EpochReport.__dataclass_fields__)
        check_keys(set(facts), fields if "digest" in found else fields - {"digests", "probabilities"})
        report = EpochReport(**facts)
        _check_report(report, epoch, rows)
        for name, size in report.parts.items():
            path = check_inside(at, name)
            if not path.is_file():
                raise ValueError(f"{name} is missing")
            if path.stat().st_size != size:
                raise ValueError(f"{name} has {path.stat().st_size} bytes, not {size}")
        return report
    raise AssertionError  # `reading` raises


def _check_report(report: EpochReport, epoch: int, rows: int) -> None:
    counts = {name: getattr(report, name) for name in ("epoch", "rows", "nan", "empty", "padding")}
    counts |= dict(report.parts)
    if wrong := [name for name, count in counts.items() if type(count) is not int or count < 0]:
        raise TypeError(f"{wrong[0]} is {counts[wrong[0]]!r}")
    if (report.epoch, report.rows) != (epoch, rows):
        raise ValueError(f"it is of epoch {report.epoch} of {report.rows} rows, not of {epoch} of {rows}")
    if report.nan + report.empty > rows or not isinstance(report.nan_ids, list) or len(report.nan_ids) > SHOWN:
        raise ValueError(f"{report.nan} of {rows} rows are not finite, {report.nan_ids!r}")
    if not report.parts or (report.digests and set(report.digests) != set(report.parts)):
        raise ValueError(f"parts {sorted(report.parts)} with digests of {sorted(report.digests)}")
    for digest in (*report.digests.values(), *([] if report.probabilities is None else [report.probabilities])):
        check_digest(digest)


def check_parts(folder: Path, report: EpochReport) -> None:
    """Compare the parts of an epoch with their digests.

    Raises:
        DamagedFileError: a part has changed.
    """
    at = epoch_folder(folder, report.epoch)
    with reading(at, f"recording of epoch {report.epoch}", CHOICE):
        for name, digest in report.digests.items():
            if file_digest(check_inside(at, name)) != digest:
                raise ValueError(f"{name} has changed since it was recorded")


def read_parts(folder: Path, report: EpochReport, columns: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Columns (n,) of an epoch, in the order of the keys.

    Raises:
        DamagedFileError: the parts do not hold each row once, or other types.
    """
    at, n = epoch_folder(folder, report.epoch), report.rows
    with reading(at, f"recording of epoch {report.epoch}", CHOICE):
        paths = [check_inside(at, name) for name in sorted(report.parts)]
        stored = sum(pq.read_metadata(path).num_rows for path in paths)
        if stored != n:
            raise ValueError(f"{stored} rows, not {n}")
        tables = [read_table(path, ("row", *columns)) for path in paths]
        rows = np.concatenate([table["row"] for table in tables])
        seen = np.zeros(n, bool)
        if rows.min(initial=0) >= 0 and rows.max(initial=-1) < n:
            seen[rows] = True
        if not seen.all():
            raise ValueError("rows that are there twice, or not in the log")
        out = {}
        for column in columns:
            values = np.concatenate([table[column] for table in tables])
            out[column] = np.empty_like(values)
            out[column][rows] = values
        return out
    raise AssertionError  # `reading` raises


def read_table(path: Path, columns: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Columns of a part, of the types that a part has, without nulls; the caller says which file it is."""
    schema = pq.read_schema(path)
    for column in columns:
        want = TYPES.get(column, pa.float32())
        if column not in schema.names or schema.field(column).type != want:
            raise TypeError(f"{path.name} has no column {column!r} of type {want}")
    table = pq.read_table(path, columns=list(columns), partitioning=None)
    if any(table.column(column).null_count for column in columns):
        raise ValueError(f"{path.name} has nulls")
    return {column: table.column(column).to_numpy() for column in columns}


def open_probabilities(
    path: Path, rows: int, classes: int | None, digest: str | None = None
) -> np.memmap[Any, np.dtype[np.float32]]:
    """The probabilities (n, C) of an epoch, mapped for reading and writing.

    Raises:
        DamagedFileError: the file is of another shape or type, or not that of the digest.
    """
    remedy = "go on from the checkpoint of another epoch, or begin a log in another folder"
    with reading(path, "file of probabilities", remedy):
        if digest is not None and file_digest(path) != digest:
            raise ValueError("it has changed since it was recorded")
        held = np.lib.format.open_memmap(path, mode="r+")
        if held.shape != (rows, classes) or held.dtype != np.float32 or not held.flags.c_contiguous:
            raise ValueError(f"{held.dtype} of shape {held.shape}, not float32 of {(rows, classes)}")
        return held
    raise AssertionError  # `reading` raises
