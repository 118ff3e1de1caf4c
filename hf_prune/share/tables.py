"""What is pushed: the score columns, their rows as Arrow tables and Parquet files, and the numbers of the card."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features

from hf_prune.checks import check_split_name
from hf_prune.columns import SIDECAR, ScoreColumn, read_sidecar
from hf_prune.data.files import file_digest
from hf_prune.prune.filter import keep_mask
from hf_prune.share.card import Balance, balance

SHARD_BYTES = 500_000_000
GROUP_ROWS = 100_000
_PART = re.compile(r"(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}\.parquet")


def splits_of(ds: Any) -> dict[str, Dataset]:
    """The splits of what is to be shared, by name."""
    if isinstance(ds, Dataset):
        return {check_split_name(split_name(ds) or "train"): ds}
    if isinstance(ds, dict) and ds and all(isinstance(d, Dataset) for d in ds.values()):
        return {check_split_name(k): d for k, d in ds.items()}
    raise TypeError(f"push_scored needs a Dataset or a DatasetDict with splits, not {type(ds).__name__}")


def split_name(ds: Dataset) -> str | None:
    """The split that the rows of a dataset are from: `train` of `train[:10%]`; None of `train+test`."""
    match = re.fullmatch(r"(\w+(?:\.\w+)*)(?:\[.*\])?", str(ds.split or ""))
    return match[1] if match else None


def score_columns(
    splits: Mapping[str, Dataset], scorers: Any, columns: Any, needed: bool = True
) -> dict[str, ScoreColumn]:
    """Provenance of each main score column, companions that the data have included in it.

    An Embedder whose column is not among the data is no score to push, but tells the model behind those that are.
    """
    there = list(dict.fromkeys(c for d in splits.values() for c in d.column_names))
    found: dict[str, ScoreColumn] = {}
    for one in [scorers] if isinstance(scorers, (str, Path, ScoreColumn)) or hasattr(scorers, "describe") else scorers:
        for column in _described(one):
            found[column.name] = column
    companions = {name for c in found.values() for name in c.companions}
    for name in [columns] if isinstance(columns, str) else columns or ():
        if name not in found and name not in companions:
            found[name] = ScoreColumn(name=name)
    if not found and needed:
        raise ValueError(
            f"no score columns named: pass scorers=[...] or columns=[...]; the data have {', '.join(map(repr, there))}"
        )
    embedders = {name: c for name, c in found.items() if c.model and "[" in c.dtype}
    missing = [name for name in found if name not in there and name not in embedders]
    if missing or not set(found) & set(there) and needed:
        raise KeyError(f"no column {(missing or list(found))[0]!r} to push; the data have {there}")
    return {
        name: replace(
            _with_model(c, embedders),
            companions={k: v for k, v in c.companions.items() if k in there and k not in found},
        )
        for name, c in found.items()
        if name in there
    }


def _with_model(column: ScoreColumn, embedders: Mapping[str, ScoreColumn]) -> ScoreColumn:
    """The model behind a score of embeddings is that of the Embedder which wrote them, if it was named too."""
    source = embedders.get(str(column.params.get("embedding")))
    return column if column.model or source is None else replace(column, model=source.model)


def _described(one: Any) -> list[ScoreColumn]:
    if isinstance(one, ScoreColumn):
        return [one]
    if isinstance(one, (str, Path)):
        path = Path(one)
        path = path / SIDECAR if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"{one} is no score folder: it has no {SIDECAR}")
        return list(read_sidecar(path)[0].values())
    if not hasattr(one, "describe"):
        raise TypeError(f"{one!r} in scorers= is no scorer, ScoreColumn or score folder; columns= takes names")
    column: ScoreColumn = one.describe()
    others = {name: "" for name in one.columns() if name != column.name}
    return [replace(column, companions={**others, **column.companions})]


def names_of(columns: Mapping[str, ScoreColumn]) -> list[str]:
    """Score columns and their companions, each once."""
    return list(dict.fromkeys(n for name, c in columns.items() for n in (name, *c.companions)))


def table_of(ds: Dataset, split: str, row_id: str, names: Sequence[str]) -> pa.Table:
    """Ids and scores (n, 1 + c) in the order of the rows, through Arrow, with the features in the schema."""
    if row_id in names:
        raise ValueError(f"{row_id!r} is the column of ids and cannot be a score column; name another with row_id=")
    missing = [n for n in names if n not in ds.column_names]
    if missing:
        raise KeyError(f"split {split!r} has some score columns but not {missing[0]!r}; it has {ds.column_names}")
    if row_id not in ds.column_names:
        raise ValueError(
            f"split {split!r} has no column {row_id!r} to join scores by; add one before scoring with"
            f" hf_prune.with_row_id(ds), or name yours with row_id=; it has {ds.column_names}"
        )
    if not len(ds):
        raise ValueError(f"split {split!r} is empty; there is nothing to push")
    check_ids(ds, split, row_id)
    plain = ds.with_format(None).select_columns([row_id, *names])
    table = plain.with_format("arrow")[:]
    for name in names:
        if pa.types.is_null(table.schema.field(name).type) or table[name].null_count == table.num_rows:
            raise ValueError(f"score column {name!r} of split {split!r} is null in every row; score the data again")
    return table.cast(plain.features.arrow_schema)


def check_ids(ds: Dataset, split: str, row_id: str) -> None:
    """Raise a ValueError for ids that are null or occur twice."""
    ids = ids_of(ds, row_id)
    if ids.null_count:
        raise ValueError(
            f"{ids.null_count} ids in column {row_id!r} of split {split!r} are null; with_row_id(ds) makes ids"
        )
    counts = pc.value_counts(ids)
    often = pc.filter(counts.field("values"), pc.greater(counts.field("counts"), 1))
    if len(often):
        raise ValueError(
            f"{len(often)} ids in column {row_id!r} of split {split!r} occur more than once, first"
            f" {often[0].as_py()!r}; scores cannot be told apart: with_row_id(ds) makes ids that are unique"
        )


def ids_of(ds: Dataset, row_id: str) -> pa.Array:
    """The ids of a dataset as text, (n,)."""
    column = ds.with_format(None).select_columns([row_id]).with_format("arrow")[:][row_id]
    return text_of(column)


def text_of(column: pa.ChunkedArray) -> pa.Array:
    """A column of ids as one array of text."""
    if pa.types.is_nested(column.type):
        raise ValueError(f"ids cannot be {column.type}; name a column of texts or numbers with row_id=")
    joined = column.cast(pa.large_string()).combine_chunks()
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def ids_digest(column: pa.ChunkedArray) -> str:
    """Digest of a set of ids: 32 hex digits of the sha256 of the sorted ids, one a line."""
    ids = text_of(column)
    digest = hashlib.sha256()
    ordered = ids.take(pc.sort_indices(ids))
    for first in range(0, len(ordered), GROUP_ROWS):
        digest.update("".join(f"{i}\n" for i in ordered.slice(first, GROUP_ROWS).to_pylist()).encode())
    return digest.hexdigest()[:32]


def feature_of(splits: Mapping[str, Dataset], name: str) -> Features:
    """Features of the first split that has a column of that name."""
    return next(d.features for d in splits.values() if name in d.column_names)


def dtype_of(feature: Any) -> str:
    """A feature's type in words, `float32[384]` for lists."""
    inner = getattr(feature, "feature", None)
    if inner is None:
        return str(getattr(feature, "dtype", None) or type(feature).__name__)
    length = getattr(feature, "length", -1)
    return f"list<{dtype_of(inner)}>" + (f"[{length}]" if length and length > 0 else "")


def _numbers(column: pa.ChunkedArray) -> np.ndarray | None:
    """Numbers (n,) as float64, null as NaN; None if the column does not hold numbers."""
    kind = column.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        return None
    values = column.cast(pa.uint8()) if pa.types.is_boolean(kind) else column
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(), np.float64)


def values_of(tables: Mapping[str, pa.Table], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The numbers of each score column, all splits together."""
    found = {}
    for name in names:
        parts = [_numbers(t[name]) for t in tables.values()]
        if all(part is not None for part in parts):
            found[name] = np.concatenate([part for part in parts if part is not None])
    return found


def balances_of(
    splits: Mapping[str, Dataset],
    tables: Mapping[str, pa.Table],
    names: Sequence[str],
    row_id: str,
    label: str | None,
    keep: float,
) -> list[Balance]:
    """Class balance of the split that people prune: train, or the only one."""
    split = "train" if "train" in splits else next(iter(splits))
    ds, table = splits[split], tables[split]
    if label is None:
        classes = [n for n, f in ds.features.items() if isinstance(f, ClassLabel)]
        label = classes[0] if len(classes) == 1 else "label" if "label" in classes else None
        if label is None:
            return []
    if label not in ds.column_names:
        raise KeyError(f"no column {label!r} for label=; split {split!r} has {ds.column_names}")
    column = ds.with_format(None).select_columns([label]).with_format("arrow")[:][label]
    feature = ds.features[label]
    if isinstance(feature, ClassLabel):
        labels, classes = pc.fill_null(column.cast(pa.int64()), -1).to_numpy(), list(feature.names)
    elif pa.types.is_nested(column.type):
        raise ValueError(f"label={label!r} holds {column.type}, not classes; name a column of classes")
    else:
        encoded = text_of(column)
        kinds = pc.unique(encoded.drop_null())
        kinds = kinds.take(pc.sort_indices(kinds))
        labels = pc.fill_null(pc.index_in(encoded, value_set=kinds), -1).to_numpy(zero_copy_only=False)
        classes = kinds.to_pylist()
    masks = {}
    for name in names:
        values = _numbers(table[name])
        if values is not None and not np.isnan(values).all():
            masks[name] = _kept(table[name], table[row_id], keep)
    return [balance(split, label, labels, classes, masks, keep)] if masks else []


def _kept(scores: pa.ChunkedArray, ids: pa.ChunkedArray, keep: float) -> np.ndarray:
    """Rows (n,) that `filter_by_score` keeps when rows without a score are dropped."""
    if not pa.types.is_floating(scores.type):
        scores = scores.cast(pa.float64(), safe=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ties at the cut are the business of whoever prunes
        return keep_mask(scores, keep=keep, nulls="drop", ids=ids)


def size_of(table: pa.Table) -> int:
    """Bytes of a table."""
    return int(table.nbytes)


def write_parquet(tables: Mapping[str, pa.Table], config_name: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Write Parquet whose bytes depend on scores and Arrow's version only; yields path in the repo and file."""
    for split, table in tables.items():
        shards = max(1, -(-size_of(table) // SHARD_BYTES))
        rows = -(-table.num_rows // shards)
        for shard in range(shards):
            name = f"{split}-{shard:05d}-of-{shards:05d}.parquet"
            part = table.slice(shard * rows, rows)
            with (
                pa.OSFile(str(folder / name), "wb") as sink,
                pq.ParquetWriter(sink, table.schema, compression="zstd") as writer,
            ):
                for first in range(0, part.num_rows, GROUP_ROWS):
                    # one chunk: where the chunks of a table end would show in the pages
                    writer.write_table(part.slice(first, GROUP_ROWS).combine_chunks(), row_group_size=GROUP_ROWS)
            yield f"{config_name}/{name}", folder / name


def split_facts(tables: Mapping[str, pa.Table], files: Mapping[str, Path], row_id: str) -> dict[str, Any]:
    """What the sidecar says of each split: its rows, the digest of its ids, and those of its files."""
    digests: dict[str, dict[str, str]] = {split: {} for split in tables}
    for name, path in files.items():
        digests[split_of(name)][Path(name).name] = file_digest(path)
    return {s: {"rows": t.num_rows, "ids": ids_digest(t[row_id]), "files": digests[s]} for s, t in tables.items()}


def sidecar_path(config_name: str) -> str:
    """Where the sidecar of a config is in a folder or repo."""
    return SIDECAR if config_name == "scores" else f"{config_name}/{SIDECAR}"


def split_of(path: str | Path) -> str:
    """The split that a file's name says it is of."""
    match = _PART.fullmatch(Path(path).name)
    return match["split"] if match else "train"
