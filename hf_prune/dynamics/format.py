"""What lies in the folder of a `TrainingLog`: names, the manifest, rows, reports and parts; all checked when read.

    log.json                          what was recorded, and the digest of the rows
    rows.parquet                      keys (ascending), ids, and labels where the recorder knew them
    epoch-00000/part-00000.parquet    what one process recorded of an epoch: the position of each row, and its numbers
    epoch-00000/report.json           written last: the parts with sizes and digests; without it the epoch is unfinished
    probabilities-00000.npy           of the last two epochs, for the divergence of the next

An epoch that is damaged, or is recorded again, is moved aside: `epoch-00001.damaged-1`, `epoch-00002.replaced-1`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from hf_prune.checks import check_choice, check_digest, check_inside
from hf_prune.data.files import Explain, file_digest, read_json, reading, write_text
from hf_prune.networks.statistics import FLOATS

Mode = Literal["train", "eval"]
Task = Literal["classification", "language_model"]

FORMAT = 2
READ = (1, 2)  # what was written before there were digests is read, too
MODES, TASKS = ("train", "eval"), ("classification", "language_model")
MANIFEST, ROWS, REPORT = "log.json", "rows.parquet", "report.json"
SHOWN = 5  # ids that a message or a report lists
LOG = ("training log", "put it back from a copy, or record the run again in another folder")
CHOICE = "put its folder back from a copy, leave the epoch out (epochs=...), or record the run again"
_EPOCH = re.compile(r"epoch-(\d{5,9})")
_ASIDE = re.compile(r"epoch-(\d{5,9})\.(damaged|replaced)-\d+")
_TYPES = {"row": pa.int64(), "step": pa.int64(), "correct": pa.bool_(), "tokens": pa.int32()}


@dataclass(frozen=True)
class Manifest:
    """What a log is of.

    Args:
        mode, task, id_column, label, classes, divergence, facts: see `TrainingLog`.
        run: tells the runs that begin in one folder apart; None in logs from before runs had names.
        rows: digest of `rows.parquet`; None in logs from before there were digests.
    """

    mode: Mode
    task: Task | None
    id_column: str
    label: str | None
    classes: int | None
    divergence: bool
    facts: Mapping[str, Any]
    run: str | None = None
    rows: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of the log in `folder`.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it was written by another version of the format.
            DamagedFileError: it is damaged.
        """
        path = folder / MANIFEST
        if not path.exists():
            raise FileNotFoundError(
                f"{folder} holds no training log ({MANIFEST} is missing); name the folder that the recorder wrote"
            )
        found = read_json(path, *LOG)
        version = found.get("format")
        if type(version) is not int or version not in READ:
            known = " and ".join(map(str, READ))
            raise ValueError(f"{path} has format {version!r}, this version reads {known}; install a matching hf_prune")
        with reading(path, *LOG):
            facts = unsealed(found, required=version > 1)
            optional = {"run"} if version == 1 else set()
            names = {each for each in cls.__dataclass_fields__ if version > 1 or each != "rows"}
            _check_keys(set(facts), names | {"format", "columns"}, optional)
            made = cls(**{name: facts[name] for name in names & set(facts)})
            made._check()
            return made
        raise AssertionError  # `reading` raises

    def _check(self) -> None:
        check_choice("mode", self.mode, MODES)
        check_choice("task", self.task, (None, *TASKS))
        for name, kinds in (
            ("id_column", (str,)), ("label", (str, type(None))), ("run", (str, type(None))), ("divergence", (bool,)),
            ("classes", (int, type(None))), ("facts", (dict,)),
        ):  # fmt: skip
            if type(getattr(self, name)) not in kinds:
                raise TypeError(f"{name} is {getattr(self, name)!r}")
        if self.classes is not None and self.classes < 2:
            raise ValueError(f"{self.classes} classes")
        if self.rows is not None:
            check_digest(self.rows)

    def write(self, folder: Path, explained: Explain) -> Manifest:
        """Write it, with the digest of the rows that lie there; returns what was written."""
        made = replace(self, rows=file_digest(folder / ROWS))
        facts = {"format": FORMAT, **asdict(made), "columns": columns_of(self.task, self.divergence)}
        write_text(folder / MANIFEST, sealed(facts), explained)
        return made


@dataclass(frozen=True)
class EpochReport:
    """What is worth knowing of an epoch beside its numbers.

    Args:
        epoch: from 0.
        rows: recorded, each once.
        nan: rows whose loss was not finite; their statistics are NaN.
        nan_ids: the first of them.
        empty: rows of a language model without a labelled token; their statistics are NaN as well.
        padding: presentations left out, with which a sampler filled the last batches of several processes.
        parts: the finished part files and their sizes in bytes.
        digests: of the part files; empty in logs from before there were digests.
        probabilities: digest of the file of probabilities, where `divergence` is recorded.
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


def sealed(facts: Mapping[str, Any]) -> str:
    """Facts as JSON, with their digest among them.

    >>> unsealed(json.loads(sealed({"a": 1}))), '"digest"' in sealed({"a": 1})
    ({'a': 1}, True)
    """
    plain = json.loads(json.dumps(facts))
    return json.dumps({**plain, "digest": _digest(plain)}, indent=1)


def unsealed(found: Mapping[str, Any], required: bool = True) -> dict[str, Any]:
    """Facts without their digest.

    Raises:
        ValueError: they are not what was sealed, or never were and are `required` to be.
    """
    facts = {name: value for name, value in found.items() if name != "digest"}
    if ("digest" in found or required) and found.get("digest") != _digest(facts):
        raise ValueError("its digest is that of something else")
    return facts


def _digest(facts: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode())


def columns_of(task: Task | None, divergence: bool) -> tuple[str, ...]:
    """Columns of a task; none while the task is not known."""
    if task is None:
        return ()
    own = ("accuracy", "tokens") if task == "language_model" else ("correct",)
    return (*FLOATS, *own, *(("divergence",) if divergence else ()))


def epoch_folder(folder: Path, epoch: int) -> Path:
    """Where the parts of an epoch are."""
    return folder / f"epoch-{epoch:05d}"


def probabilities_path(folder: Path, epoch: int) -> Path:
    """Where the probabilities of an epoch are."""
    return folder / f"probabilities-{epoch:05d}.npy"


def epoch_folders(folder: Path) -> dict[int, Path]:
    """The folders of epochs, finished or not, by number; those moved aside are not among them."""
    found = ((_EPOCH.fullmatch(path.name), path) for path in folder.glob("epoch-*"))
    return {int(match[1]): path for match, path in found if match and path.name == f"epoch-{int(match[1]):05d}"}


def moved_aside(folder: Path) -> list[tuple[int, str, Path]]:
    """Epochs that were moved aside: their number, why ("damaged" or "replaced"), and where they are."""
    found = ((_ASIDE.fullmatch(path.name), path) for path in folder.glob("epoch-*.*"))
    return [(int(match[1]), match[2], path) for match, path in found if match]


def aside(path: Path, why: str) -> Path:
    """A free name for what is moved aside: the same with the reason and a number."""
    return next(at for n in range(1, 1 << 30) if not (at := path.with_name(f"{path.name}.{why}-{n}")).exists())


def finished(folder: Path) -> int:
    """Number of finished epochs, damaged ones too: one more than the last that has a report."""
    return max((epoch + 1 for epoch, path in epoch_folders(folder).items() if (path / REPORT).exists()), default=0)


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
        _check_keys(set(facts), fields if "digest" in found else fields - {"digests", "probabilities"})
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
        want = _TYPES.get(column, pa.float32())
        if column not in schema.names or schema.field(column).type != want:
            raise TypeError(f"{path.name} has no column {column!r} of type {want}")
    table = pq.read_table(path, columns=list(columns), partitioning=None)
    if any(table.column(column).null_count for column in columns):
        raise ValueError(f"{path.name} has nulls")
    return {column: table.column(column).to_numpy() for column in columns}


def check_rows(folder: Path, manifest: Manifest) -> None:
    """Compare `rows.parquet` with its digest.

    Raises:
        DamagedFileError: it has changed, or is missing.
    """
    path = folder / ROWS
    with reading(path, "list of rows", LOG[1]):
        if not path.is_file():
            raise ValueError("it is missing")
        if manifest.rows is not None and file_digest(path) != manifest.rows:
            raise ValueError("it has changed since it was recorded")


def read_rows(folder: Path, column: str) -> pa.ChunkedArray:
    """One column of `rows.parquet`; for "label", an array without chunks where the recorder knew none.

    Raises:
        DamagedFileError: the file is not what it should be.
    """
    path = folder / ROWS
    with reading(path, "list of rows", LOG[1]):
        schema = pq.read_schema(path)
        want = {"key": pa.uint64(), "label": pa.int64()}.get(column)
        if column == "label" and column not in schema.names:
            return pa.chunked_array([], pa.int64())
        if want is not None and schema.field(column).type != want:
            raise TypeError(f"column {column!r} has type {schema.field(column).type}, not {want}")
        values = pq.read_table(path, columns=[column], partitioning=None).column(column)
        if values.null_count:
            raise ValueError(f"column {column!r} has nulls")
        return values
    raise AssertionError  # `reading` raises


def read_keys(folder: Path, manifest: Manifest) -> NDArray[np.uint64]:
    """The keys (n,), ascending.

    Raises:
        DamagedFileError: they are not ascending, or not those that the manifest tells of.
    """
    keys: NDArray[np.uint64] = read_rows(folder, "key").to_numpy()
    with reading(folder / ROWS, "list of rows", LOG[1]):
        if not len(keys) or (keys[1:] <= keys[:-1]).any():
            raise ValueError("keys that are not ascending")
        told = manifest.facts.get("ids")
        if told is not None and told != xxhash.xxh3_128_hexdigest(keys.tobytes()):
            raise ValueError(f"the keys are not those that {MANIFEST} tells of")
    return keys


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
        found = np.lib.format.open_memmap(path, mode="r+")
        if found.shape != (rows, classes) or found.dtype != np.float32 or not found.flags.c_contiguous:
            raise ValueError(f"{found.dtype} of shape {found.shape}, not float32 of {(rows, classes)}")
        return found
    raise AssertionError  # `reading` raises


def _check_keys(found: set[str], known: set[str], optional: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    if missing := sorted(known - optional - found):
        raise KeyError(f"no {missing[0]!r}")
    if strange := sorted(found - known):
        raise KeyError(f"{strange[0]!r} is not known")
