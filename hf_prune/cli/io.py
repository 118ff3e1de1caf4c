"""What the command line reads and writes: DATA by its name, OUT by its extension, nothing half-written."""

from __future__ import annotations

import errno
import logging
import mimetypes
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_prune.checks import check_split_name
from hf_prune.data.files import FULL, DamagedFileError, making, placed, reading, sweep, whole
from hf_prune.shown import printable

READERS = {
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
}
WRITERS = (".parquet", ".jsonl", ".csv")
SAFE_ROWS = 10_000  # at a time
SAVED = ("dataset_info.json", "dataset_dict.json")  # what save_to_disk leaves in a folder
_HUB = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.+-]+))?(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Data:
    """DATA of a command line, opened: the split that is worked on, and the others, which come back as they are."""

    main: Any
    split: str | None = None
    others: Any = None  # a DatasetDict with all splits, or None
    folder: Path | None = None  # where save_to_disk had it

    def with_main(self, ds: Any) -> Data:
        """The same with another main split."""
        return replace(self, main=ds)

    @property
    def whole(self) -> Any:
        """The dataset, or all splits with the main one in its place."""
        if self.others is None:
            return self.main
        return type(self.others)({**self.others, self.split: self.main})

    def describe(self) -> str:
        """Rows and columns in words."""
        where = f" of split {self.split!r}" if self.others is not None else ""
        return f"{len(self.main):,} rows{where}, columns {', '.join(map(printable, self.main.column_names))}"


def open_data(spec: str, split: str | None = None) -> Data:
    """Open DATA: a folder of `save_to_disk`, files or a folder of files, or a name on the Hub.

    Args:
        spec: a path, or `user/name[:config][@revision]`. What exists here is a path.
        split: the only one to read; else all, of which `train` (or the only one) is worked on.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file of an unknown kind, or one that cannot be read.
        KeyError: no such split, or no `train` among several; the message has those that are.

    >>> open_data("missing.parquet")
    Traceback (most recent call last):
    ...
    FileNotFoundError: missing.parquet does not exist; give a file, a folder, or a Hub name (user/name)
    """
    path = Path(spec).expanduser()
    if path.exists():
        found = _saved(path) if path.is_dir() and _is_saved(path) else _files(path, split)
    elif path.suffix in READERS or spec.startswith((".", "/", "~")) or not _HUB.fullmatch(spec):
        raise FileNotFoundError(f"{spec} does not exist; give a file, a folder, or a Hub name (user/name)")
    else:
        found = _hub(spec, split)
    return _choose(found, spec, split, path if path.is_dir() and _is_saved(path) else None)


def _choose(found: Any, spec: str, split: str | None, folder: Path | None) -> Data:
    from datasets import DatasetDict

    if not isinstance(found, DatasetDict):
        own = str(found.split) if found.split is not None else None
        if split is not None and own is not None and own != split:
            raise KeyError(f"{spec} has no split {split!r}, only {own!r}")
        return Data(found, split or own, None, folder)
    if split is not None:
        if split not in found:
            raise KeyError(f"{spec} has no split {split!r}, only {list(found)}")
        return Data(found[split], split, None, folder)
    if len(found) == 1:
        name = next(iter(found))
        return Data(found[name], name, None, folder)
    if "train" not in found:
        raise KeyError(f"{spec} has no split 'train', only {list(found)}; choose one with --split")
    return Data(found["train"], "train", found, folder)


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in SAVED)


def _saved(path: Path) -> Any:
    from datasets import load_from_disk

    with reading(path, "saved dataset", "save it again, or get it anew"):
        return load_from_disk(str(path))


def _files(path: Path, split: str | None) -> Any:
    from datasets import load_dataset

    if path.is_dir():
        if not any(p.suffix in READERS for p in path.rglob("*") if p.is_file()):
            raise ValueError(
                f"{path} holds neither a saved dataset nor data files; files end in {', '.join(sorted(READERS))}"
            )
        found = _reading(path, lambda: load_dataset(str(path)))
        _say_left_out(path, next(iter(found.values())).info.builder_name)
        return found
    if path.suffix not in READERS:
        raise ValueError(f"{path} is no data file; its name must end in {', '.join(sorted(READERS))}")
    options: dict[str, Any] = {"sep": "\t"} if path.suffix == ".tsv" else {}
    kind, name = READERS[path.suffix], check_split_name(split or "train")
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"{path} is empty; give a file with rows")
    return _reading(path, lambda: load_dataset(kind, data_files={name: str(path)}, split=name, **options))


def _say_left_out(folder: Path, kind: str | None) -> None:
    """Warn of data files that `load_dataset` did not read: of several kinds it takes the most frequent one."""
    from hf_prune.columns import SIDECAR

    about = (SIDECAR, *SAVED, "dataset_infos.json", "state.json")  # no data
    others = (p for p in folder.rglob("*") if READERS.get(p.suffix, kind) != kind and p.name not in about)
    left = sorted(p for p in others if p.is_file())
    if kind in READERS.values() and left:
        warnings.warn(
            f"{folder} has files of several kinds, of which those of {kind} are read; left out: "
            f"{', '.join(str(p.relative_to(folder)) for p in left[:3])}{' ...' if len(left) > 3 else ''}",
            stacklevel=2,
        )


def _reading(path: Path, read: Callable[[], Any]) -> Any:
    from datasets.exceptions import DatasetGenerationError, DatasetsError

    log = logging.getLogger("datasets")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it says the same as its exceptions
    try:
        with reading(path, "data file", "mend it, or leave it out"):
            try:
                return read()
            except (DatasetGenerationError, DatasetsError) as error:
                reason: BaseException = error
                while isinstance(reason, DatasetGenerationError) and reason.__cause__ is not None:
                    reason = reason.__cause__
                _check_cache(reason)
                raise reason from error
            except OSError as error:
                _check_cache(error)
                raise
    except DamagedFileError as error:
        if "corresponds to no data" in str(error):
            raise ValueError(f"{path} has no rows") from error
        raise
    finally:
        log.setLevel(level)


def _check_cache(error: BaseException) -> None:
    """Raise if the cache, to which `datasets` writes what it reads, is at fault and not the data.

    Raises:
        OSError: it is full, or may not be written.
    """
    import datasets

    cache = Path(datasets.config.HF_DATASETS_CACHE)
    if not isinstance(error, OSError):
        return
    name = Path(os.fsdecode(error.filename)) if error.filename is not None else None
    full = error.errno in FULL or "Not enough disk space" in str(error)
    if full or name in (cache, *cache.parents) or (name is not None and cache in name.parents):
        raise OSError(
            errno.ENOSPC if full else errno.EACCES,  # no fault of the file
            f"the cache of datasets, {cache}, cannot be written ({error.strerror or _first_line(error)}); make room "
            "there, or set HF_DATASETS_CACHE to a folder that you may write to",
        ) from error


def _hub(spec: str, split: str | None) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    match = _HUB.fullmatch(spec)
    assert match is not None
    try:
        return load_dataset(match["name"], match["config"], revision=match["revision"], split=split)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(f"{spec} is neither here nor to be had from the Hub: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


# -- OUT ---------------------------------------------------------------


def check_out(out: Path, overwrite: bool = False, data: str | None = None) -> Path:
    """OUT before any work is done: whether it may be written.

    Args:
        out: a folder, or a file whose extension says its format.
        overwrite: whether what is there may be replaced: a file, or a folder that `save_to_disk` wrote.
        data: DATA, which must not lie inside OUT.

    Raises:
        FileExistsError: it is there; the message has the remedy.
        PermissionError: it may not be written.
        ValueError: an extension that is not known, or OUT holds DATA.

    >>> check_out(Path("kept.json"))
    Traceback (most recent call last):
    ...
    ValueError: kept.json: files are written as .parquet, .jsonl, .csv; a name without extension is a folder
    """
    out = out.expanduser()
    kinds = ", ".join(WRITERS)
    if str(out) == "-":
        raise ValueError(f"-o -: data are not written to stdout; name a folder, or a file that ends in {kinds}")
    ends = out.suffixes[-2:]  # .JSONL, .csv.gz
    if out.suffix not in WRITERS and (any(e.lower() in READERS for e in ends) or any(mimetypes.guess_type(out.name))):
        raise ValueError(f"{out}: files are written as {kinds}; a name without extension is a folder")
    check_replace(out, overwrite, SAVED if out.suffix not in WRITERS else ())
    if data is not None and out.is_dir() and out.resolve() in Path(data).expanduser().resolve().parents:
        raise ValueError(f"{data} lies inside {out}, which --overwrite would remove; choose another output")
    return out


def check_report(report: Path, overwrite: bool) -> Path:
    """The path of a report, which takes the place of no data.

    Raises:
        FileExistsError: something is there.
        ValueError: its name is not that of a report.
    """
    report = report.expanduser()
    if report.suffix != ".html":
        raise ValueError(f"the report {report} is a page; give a name that ends in .html")
    check_replace(report, overwrite, ())
    return report


def check_replace(out: Path, overwrite: bool, ours: tuple[str, ...]) -> None:
    """Raise if OUT may not be made, or may not be replaced; a folder must hold one of the files in `ours`."""
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; choose another output, or pass --overwrite")
    if out.is_dir() and not any((out / name).is_file() for name in ours) and any(out.iterdir()):
        raise FileExistsError(f"{out} holds something that hf-prune did not write; remove it yourself")
    if out.exists() and not out.is_dir() and out.suffix not in (*WRITERS, ".html"):
        raise FileExistsError(f"{out} is a file, and a folder is to be written; choose another output")
    parent = next(p for p in (out.absolute().parent, *out.absolute().parents) if p.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{out} cannot be written: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{out} cannot be written: no permission in {parent}; choose another output")


def check_columns(features: Any, out: Path) -> None:
    """Raise where a text format cannot hold a column: better before an hour of work than after it.

    Raises:
        ValueError: lists in CSV, or pictures and bytes in either text format.
    """
    import pyarrow as pa

    if out.suffix not in (".csv", ".jsonl"):
        return
    for name, field in features.items():
        kind = features.arrow_schema.field(name).type
        binary = _has_bytes(kind)
        if binary or (out.suffix == ".csv" and pa.types.is_nested(kind)):
            what = "bytes" if binary else "lists or records"
            raise ValueError(
                f"column {name!r} ({type(field).__name__}) holds {what}, which {out.suffix} cannot; "
                "write .parquet or a folder"
            )


def _has_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    return any(_has_bytes(kind.field(i).type) for i in range(kind.num_fields)) if pa.types.is_nested(kind) else False


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A temporary path beside OUT, renamed to it when all went well and removed when not (Ctrl-C included).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder) / "x.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     [p.name for p in Path(folder).iterdir()]
    ['x.txt']
    """
    out = out.absolute()
    with making(out.parent), placed(out.parent):
        sweep(out.parent)
        with whole(out) as temporary:
            yield temporary


def write_out(data: Data, out: Path, sidecar: str | None = None, safe_csv: bool = False) -> None:
    """Write the dataset: all of it or nothing.

    Args:
        data: what to write; several splits go to a folder only.
        out: checked by `check_out`.
        sidecar: text of `score_columns.json`, put into a folder beside the data.
        safe_csv: in a .csv, put an apostrophe before texts that a spreadsheet would run as formulas.

    Raises:
        ValueError: several splits for one file, or columns that the format cannot hold.
        OSError: the disk is full or not writable.
    """
    from hf_prune.columns import SIDECAR

    ds = data.whole
    if out.suffix in WRITERS:
        if data.others is not None:
            raise ValueError(f"{out} is one file, the data have splits {list(ds)}; choose one with --split")
        check_columns(ds.features, out)
    with replacing(out) as temporary:
        if out.suffix == ".parquet":
            ds.to_parquet(str(temporary))
        elif out.suffix == ".jsonl":
            ds.to_json(str(temporary), force_ascii=False)
        elif out.suffix == ".csv" and safe_csv:
            _write_safe_csv(ds, temporary)
        elif out.suffix == ".csv":
            ds.to_csv(str(temporary), index=False)
        else:
            ds.save_to_disk(str(temporary))
            if sidecar is not None:
                (temporary / SIDECAR).write_text(sidecar, encoding="utf-8")


def _write_safe_csv(ds: Any, path: Path) -> None:
    """As `to_csv` does, with an apostrophe before texts that begin as formulas do."""
    import pyarrow as pa

    with open(path, "w", encoding="utf-8", newline="") as stream:
        for number, table in enumerate(ds.with_format("arrow").iter(SAFE_ROWS)):
            columns = [_safe(c) if pa.types.is_string(c.type) or pa.types.is_large_string(c.type) else c for c in table]
            names = _safe(pa.chunked_array([pa.array(table.column_names)])).to_pylist()
            pa.table(columns, names).to_pandas().to_csv(stream, header=number == 0, index=False)


def _safe(texts: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    formula = pc.match_substring_regex(texts, r"^[=+\-@\t\r\n＝＋－＠]")
    return pc.if_else(
        formula, pc.binary_join_element_wise(pa.scalar("'", texts.type), texts, pa.scalar("", texts.type)), texts
    )


def read_provenance(data: Data) -> dict[str, Any]:
    """Score columns that the sidecar of a saved folder describes, by name; none where there is no sidecar."""
    from hf_prune.columns import SIDECAR, read_sidecar

    if data.folder is None or not (data.folder / SIDECAR).is_file():
        return {}
    columns, _ = read_sidecar(data.folder / SIDECAR)
    return {name: column for name, column in columns.items() if name in data.main.column_names}
