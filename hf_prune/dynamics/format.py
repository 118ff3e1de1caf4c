"""What lies in the folder of a `TrainingLog`: names, the manifest and the rows, checked when read.

    log.json                          what was recorded, and the digest of the rows
    rows.parquet                      keys (ascending), ids, and labels where the recorder knew them
    epoch-00000/part-00000.parquet    what one process recorded of an epoch: the position of each row, and its numbers
    epoch-00000/report.json           written last: the parts with sizes and digests; without it the epoch is unfinished
    probabilities-00000.npy           of the last two epochs, for the divergence of the next

An epoch that is damaged, or is recorded again, is moved aside: `epoch-00001.damaged-1`, `epoch-00002.replaced-1`. What
lies in the folder of an epoch is read by `epochs.py`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from hf_prune.checks import check_choice, check_count, check_digest
from hf_prune.data.files import Explain, file_digest, read_json, reading, write_text
from hf_prune.networks.statistics import FLOATS

Mode: TypeAlias = Literal["train", "eval"]
Task: TypeAlias = Literal["classification", "language_model"]

FORMAT = 3
READ = (1, 2, 3)  # 1 has no digests, and up to 2 row_id was called id_column
MANIFEST, ROWS, REPORT = "log.json", "rows.parquet", "report.json"
SHOWN = 5  # ids that a message or a report lists
LOG = ("training log", "put it back from a copy, or record the run again in another folder")
_EPOCH = re.compile(r"epoch-(\d{5,9})")
_ASIDE = re.compile(r"epoch-(\d{5,9})\.(damaged|replaced)-\d+")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Manifest:
    """What a log is of.

    Args:
        mode, task, row_id, label, classes, divergence, facts: attributes of the `TrainingLog`.
        run: name of the run, other than those of all runs that began in this folder; None in logs from before runs had
            names.
        rows: digest of `rows.parquet`; None in logs from before there were digests, and before it is written.
    """

    mode: Mode
    task: Task | None
    row_id: str
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
            if version < 3 and "id_column" in facts:
                facts["row_id"] = facts.pop("id_column")
            optional = {"run"} if version == 1 else set()
            names = {each for each in cls.__dataclass_fields__ if version > 1 or each != "rows"}
            check_keys(set(facts), names | {"format", "columns"}, optional)
            made = cls(**{name: facts[name] for name in names & set(facts)})
            made._check()
            return made
        raise AssertionError  # `reading` raises

    def _check(self) -> None:
        self.check_choices()
        for name, kinds in (
            ("row_id", (str,)), ("label", (str, type(None))), ("run", (str, type(None))), ("divergence", (bool,)),
            ("classes", (int, type(None))), ("facts", (dict,)),
        ):  # fmt: skip
            if type(getattr(self, name)) not in kinds:
                raise TypeError(f"{name} is {getattr(self, name)!r}")
        check_count("classes", self.classes, 2, optional=True)
        if self.rows is not None:
            check_digest(self.rows)

    def check_choices(self) -> None:
        """Raise a ValueError where the mode or the task is none."""
        check_choice("mode", self.mode, get_args(Mode))
        check_choice("task", self.task, (None, *get_args(Task)))

    def write(self, folder: Path, explained: Explain) -> Manifest:
        """Write it, with the digest of the rows that lie there; returns what was written."""
        made = replace(self, rows=file_digest(folder / ROWS))
        facts = {"format": FORMAT, **asdict(made), "columns": columns_of(self.task, self.divergence)}
        write_text(folder / MANIFEST, sealed(facts), explained)
        return made


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
    """Folder of the parts of an epoch."""
    return folder / f"epoch-{epoch:05d}"


def probabilities_path(folder: Path, epoch: int) -> Path:
    """File of the probabilities of an epoch."""
    return folder / f"probabilities-{epoch:05d}.npy"


def epoch_folders(folder: Path) -> dict[int, Path]:
    """The folders of epochs, finished or not, by number; those moved aside are not among them."""
    found = ((_EPOCH.fullmatch(path.name), path) for path in folder.glob("epoch-*"))
    return {int(match[1]): path for match, path in found if match and path.name == f"epoch-{int(match[1]):05d}"}


def moved_aside(folder: Path) -> list[tuple[int, str, Path]]:
    """Epochs that were moved aside: their number, why ("damaged" or "replaced"), and their folder."""
    found = ((_ASIDE.fullmatch(path.name), path) for path in folder.glob("epoch-*.*"))
    return [(int(match[1]), match[2], path) for match, path in found if match]


def aside(path: Path, why: str) -> Path:
    """A free path for what is moved aside: the same with the reason and a number."""
    return next(at for n in range(1, 1 << 30) if not (at := path.with_name(f"{path.name}.{why}-{n}")).exists())


def finished(folder: Path) -> int:
    """Number of finished epochs, damaged ones too: one more than the last that has a report."""
    return max((epoch + 1 for epoch, path in epoch_folders(folder).items() if (path / REPORT).exists()), default=0)


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
    """The keys (n,) of the rows, ascending.

    Raises:
        DamagedFileError: they are not ascending, or not those that the manifest names.
    """
    keys: NDArray[np.uint64] = read_rows(folder, "key").to_numpy()
    with reading(folder / ROWS, "list of rows", LOG[1]):
        if not len(keys) or (keys[1:] <= keys[:-1]).any():
            raise ValueError("keys that are not ascending")
        known = manifest.facts.get("ids")
        if known is not None and known != xxhash.xxh3_128_hexdigest(keys.tobytes()):
            raise ValueError(f"the keys are not those that {MANIFEST} names")
    return keys


def check_keys(found: Set[str], known: Set[str], optional: Set[str] = frozenset()) -> None:
    """Raise a KeyError unless the names that were found are those that are known; the optional ones may be missing."""
    if missing := sorted(known - optional - found):
        raise KeyError(f"no {missing[0]!r}")
    if strange := sorted(found - known):
        raise KeyError(f"{strange[0]!r} is not known")


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Say of errors of the disk what is kept, and what to do."""
    try:
        yield
    except OSError as error:
        message = f"the log cannot be written to {folder}: {error.strerror or error}; finished epochs are kept"
        raise type(error)(error.errno, f"{message}: make room or name another folder, and resume") from error
