"""Scores joined to data: where they lie, which split, and the columns put beside a table."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, load_dataset
from datasets.features.features import require_decoding

from hf_prune.checks import check_config_name, check_split_name
from hf_prune.columns import SIDECAR
from hf_prune.data.arrow import take
from hf_prune.data.files import DamagedFileError, file_digest, read_text, reading
from hf_prune.data.layout import like_format
from hf_prune.share.remote import Remote, retry
from hf_prune.share.tables import ids_of, sidecar_path, split_name, split_of, text_of

REMEDY = "save_scored or push_scored writes them again"


def find(
    source: str | Path, config_name: str, revision: str | None, token: str | bool | None
) -> tuple[dict[str, list[Path]], str | None]:
    """Parquet files by split, on this machine, and the text of the sidecar."""
    side = sidecar_path(check_config_name(config_name))
    folder = Path(source)
    if folder.is_dir():
        inside = sorted((folder / config_name).glob("*.parquet")) or sorted(folder.glob("*.parquet"))
        text = read_text(folder / side, "sidecar of scores", REMEDY) if (folder / side).is_file() else None
    elif isinstance(source, Path) or source.count("/") > 1 or source.startswith((".", "/", "~")):
        raise FileNotFoundError(f"no folder {source}")
    else:
        remote = Remote(source, revision, token)
        commit = retry(remote.head, f"reading {source}")
        listed = retry(lambda: remote.listing(config_name, commit), f"reading {source}")
        names = sorted(p for p in listed if p.endswith(".parquet") and p.count("/") == 1)
        inside = [retry(lambda n=n: remote.download(n, commit), f"reading {n}") for n in names]  # type: ignore[misc]
        text = retry(lambda: remote.text(side, commit), f"reading {side}")
    if not inside:
        raise FileNotFoundError(f"{source} has no scores: no {config_name}/*.parquet; push_scored puts them there")
    found: dict[str, list[Path]] = {}
    for path in inside:
        with reading(source, "scores", f"rename {path.name}, or write them again"):
            found.setdefault(check_split_name(split_of(path)), []).append(path)
    return found, text


def described(facts: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """What a sidecar says of each split: `rows`, `ids`, and, but for those of version 0.1.0, `files`."""
    splits = facts.get("splits") or {}
    with reading(source, "sidecar of the scores", REMEDY):
        for split, entry in splits.items():
            check_split_name(split)
            if not isinstance(entry.get("ids", ""), str):
                raise TypeError(f"the digest of the ids of {split!r} is {entry['ids']!r}")
            for name, digest in entry.get("files", {}).items():
                if split_of(name) != split or not isinstance(digest, str):
                    raise ValueError(f"{name!r} is no file of {split!r}, with a digest")
    return dict(splits)


def check_files(
    files: Mapping[str, Sequence[Path]], wanted: Iterable[str], splits: Mapping[str, Any], source: str | Path
) -> None:
    """Compare the files that are there with those that the sidecar names, and the wanted ones with their digests.

    Raises:
        DamagedFileError: half written, damaged, or put there by somebody else.
    """
    if not any("files" in entry for entry in splits.values()):  # of version 0.1.0
        return
    listed = {name: digest for entry in splits.values() for name, digest in entry.get("files", {}).items()}
    there = {path.name: path for paths in files.values() for path in paths}
    looked_at = {path.name for split in wanted for path in files[split]}
    for name in sorted(listed | there):
        if name not in there:
            what = "is missing"
        elif name not in listed:
            what = "is not named there"
        elif name in looked_at and file_digest(there[name]) != listed[name]:
            what = "has another digest"
        else:
            continue
        raise DamagedFileError(
            f"{source}: the scores are not those that its {SIDECAR} describes: {name} {what}; half written or damaged,"
            f" {REMEDY}"
        )


def read_tables(files: Mapping[str, Sequence[Path]], source: str | Path) -> DatasetDict:
    """Read the Parquet files of each split.

    Raises:
        DamagedFileError: they are no Parquet, or hold what is no score: what is decoded when it is looked at.
    """
    log = logging.getLogger("datasets")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it says the same as its exceptions
    try:
        with reading(source, "scores", REMEDY):
            loaded = load_dataset("parquet", data_files={s: [str(f) for f in fs] for s, fs in files.items()})
            for found in loaded.values():
                for name, feature in found.features.items():
                    if require_decoding(feature):
                        raise TypeError(f"column {name!r} holds {type(feature).__name__}, which is no score")
    finally:
        log.setLevel(level)
    return loaded


def choose(split: str | None, ds: Any, files: Mapping[str, Any], source: str | Path) -> str:
    """The split of the scores that belongs to a dataset."""
    name = split or (split_name(ds) if ds is not None else None)
    if name is not None and name in files:
        return name
    if split is None and len(files) == 1:
        return next(iter(files))
    raise KeyError(f"{source} has scores for the splits {sorted(files)}, not for {name!r}; pass split=")


def pick(scores: Dataset, key: str, columns: Sequence[str] | None, source: str | Path) -> Dataset:
    """The key and the wanted columns of the scores."""
    for name in (key, *(columns or ())):
        if name not in scores.column_names:
            raise KeyError(f"the scores of {source} have no column {name!r}; they have {scores.column_names}")
    return scores if columns is None else scores.select_columns([key, *(c for c in columns if c != key)])


def join(ds: Dataset, scores: Dataset, split: str, key: str, source: str | Path, verify: bool) -> Dataset:
    """`ds` with the columns of `scores` beside its table; an indices mapping is kept."""
    from datasets.fingerprint import Hasher
    from datasets.table import InMemoryTable, concat_tables

    names = [n for n in scores.column_names if n != key]
    clash = [n for n in names if n in ds.column_names]
    if clash:
        raise ValueError(f"the data have a column {clash[0]!r} already; remove or rename it, or pass columns=")
    if key not in ds.column_names:
        raise ValueError(
            f"the data have no column {key!r} to join by; with_row_id(ds) makes the ids that were made for the scores,"
            f" or name the column with row_id=; the data have {ds.column_names}"
        )
    known = text_of(scores.data[key])
    ids = ids_of(ds, key)
    unknown = ids.filter(pc.is_null(pc.index_in(ids, value_set=known)))
    if len(unknown):
        first = ", ".join(repr(i) for i in unknown.slice(0, 3).to_pylist())
        raise ValueError(
            f"{len(unknown)} of {len(ids)} rows have no score in {source} ({split!r}, {len(known)} rows), first ids:"
            f" {first}; the data have changed since they were scored: load the revision that was scored, or score again"
        )
    if verify:
        _verify(ds, key, ids)
    # positions in the whole table, not in the rows that an indices mapping shows; null where nothing was scored
    where = pc.index_in(text_of(ds.data[key]), value_set=known)
    if where.null_count:
        beside = scores.data.table.select(names).take(where)
    else:  # chunk by chunk: joined chunks of long lists can be more than Arrow can count
        beside = pa.table({n: take(scores.data.column(n), where.to_numpy()) for n in names})
    features = Features({**ds.features, **{n: scores.features[n] for n in names}})
    info = ds.info.copy()
    info.features = features
    table = concat_tables([ds._data, InMemoryTable(beside)], axis=1)
    joined = Dataset(
        table,
        info=info,
        split=ds.split,
        indices_table=ds._indices,
        fingerprint=Hasher.hash(["hf_prune.load_scores", ds._fingerprint, scores._fingerprint, names]),
    )
    return like_format(joined, ds, names)


def _verify(ds: Dataset, key: str, ids: pa.Array) -> None:
    from hf_prune.data.identity import with_row_id

    fresh = ids_of(with_row_id(ds.remove_columns([key]), row_id=key), key)
    same = [
        a.rpartition("-")[0] == b.rpartition("-")[0] for a, b in zip(ids.to_pylist(), fresh.to_pylist(), strict=True)
    ]
    if not all(same):
        row = same.index(False)
        raise ValueError(
            f"{same.count(False)} rows are not those that their ids were made for, first row {row} with id"
            f" {ids[row].as_py()!r}; the data have changed, or columns were added or removed since"
        )
