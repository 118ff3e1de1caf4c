"""Published score files (CSV of ImageNet pruning metrics and the like) as datasets, with what was inferred said."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
from datasets import Dataset, DatasetInfo, Features, Value

logger = logging.getLogger(__name__)
IMAGENET_ROWS = 1_281_167
DELIMITERS = (",", ";", "\t")
_IMAGE = r"(?i)^(?:.*[/\\])?(n\d{8}_\d+)(?:\.jpe?g)?$"
_FILE = re.compile(r"(?:ImageNet-1K_)?(?P<name>.+?)(?:\.(?:csv|tsv|txt))?(?:\.gz)?", re.IGNORECASE)


def read_released_scores(
    path: str | Path | IO[bytes],
    *,
    score_column: str | None = None,
    order: Sequence[str] | None = None,
) -> Dataset:
    r"""Read a published score file. High means keep, as in the files of the ImageNet release.

    The layout is inferred, never silently: the dataset's `info.description` says what was found, and it is logged.
    The delimiter is one of `,` `;` and tab; there is a header if the last field of the first row is no number. Image
    names (`n01440764/n01440764_10026.JPEG`) become the column `key`, as `n01440764_10026`. Of two numeric columns, one
    that is a permutation of 0..n-1 or 1..n is the column `index` (counted from 0). A lone score column gets the keys
    of `order`, or else the row number as `index`; the usual order of ImageNet is class folders by WordNet id, then
    file names.

    Args:
        path: the file, or an open binary file.
        score_column: which column holds the score, if several may.
        order: n image names, one a row, or for a file with an index one for each index.

    Returns:
        n rows: `key` or `index`, and the score as float64, named after the file
        (`ImageNet-1K_influence-max.csv` -> `influence_max`).

    Raises:
        ValueError: no or several numeric columns, repeated keys, rows of unequal length, scores that are no numbers.

    >>> import io
    >>> ds = read_released_scores(io.BytesIO(b"index,score\n1,0.5\n0,0.25\n"))
    >>> ds[0], ds.info.description.split("; ")[1]
    ({'index': 1, 'score': 0.5}, 'delimiter comma')
    """
    name = path if isinstance(path, (str, Path)) else getattr(path, "name", "")
    where = Path(name).name if isinstance(name, (str, Path)) and str(name) else "the file"
    table, said = _table(path, where)
    numeric, text = _kinds(table)
    keys, index, found = _identity(table, numeric, text, score_column, where)
    score = _score(numeric, index, score_column, table, where)
    said.append(f"score column {score!r}")
    values = table[score].cast(pa.float64())
    if values.null_count:
        row = pc.index(pc.is_null(values), True).as_py()
        raise ValueError(f"{values.null_count} scores of {where} are empty, first in row {row}; fill or drop them")
    said.append(found)
    positions = _positions(table[index]) if index else np.arange(len(values))
    if order is not None:
        if keys is not None:
            raise ValueError(f"{where} has image names already, in column {text!r}; leave order= out")
        keys = _ordered(order, positions, where)
        said.append("keys from order=")
    if keys is not None:
        _no_repeats(keys, where)
        identity, column = pa.chunked_array([keys]), "key"
        imagenet = bool(pc.all(pc.match_substring_regex(keys, r"^n\d{8}_\d+$")).as_py())
    else:
        identity, column = pa.chunked_array([pa.array(positions)]), "index"
        imagenet = where.lower().startswith("imagenet")
    if imagenet and len(values) != IMAGENET_ROWS:
        text_ = f"{where} has {len(values):,} rows; ImageNet-1K train has {IMAGENET_ROWS:,}: a part, or another set?"
        warnings.warn(text_, stacklevel=2)
    stem = _FILE.fullmatch(where)
    label = _snake(stem["name"]) if stem and where != "the file" else "score"
    if label == column:
        label = "score"
    said.append("high means keep")
    description = f"{where}: {len(values):,} rows; " + "; ".join(said) + "."
    logger.info("%s", description)
    features = Features({column: Value("string" if column == "key" else "int64"), label: Value("float64")})
    out = pa.table({column: identity.cast(features[column].pa_type), label: values})
    return Dataset(out, info=DatasetInfo(description=description, features=features))


def _table(path: str | Path | IO[bytes], where: str) -> tuple[pa.Table, list[str]]:
    """The file with plain column names, and what was inferred."""
    if isinstance(path, (str, Path)):
        with pa.input_stream(str(path)) as stream:  # a .gz is read as what is in it
            data = stream.read()
    else:
        data = path.read()
    start = data[:65536].decode("utf-8-sig", "replace")
    lines = [line for line in start.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{where} is empty")
    delimiter = max(DELIMITERS, key=lambda d: lines[0].count(d))
    first = [field.strip().strip('"') for field in lines[0].split(delimiter)]
    header = not _is_number(first[-1])
    if header and len(lines) == 1:
        raise ValueError(f"{where} has a header and no rows")
    names = _unique(
        [f or f"column_{i}" for i, f in enumerate(first)] if header else [f"column_{i}" for i in range(len(first))]
    )
    try:
        table = pcsv.read_csv(
            pa.BufferReader(data),
            read_options=pcsv.ReadOptions(column_names=names, skip_rows=int(header), block_size=8 << 20),
            parse_options=pcsv.ParseOptions(delimiter=delimiter),
            convert_options=pcsv.ConvertOptions(null_values=["", "NA", "null", "None"], strings_can_be_null=True),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{where} cannot be read as a table: {error}") from error
    shown = {",": "comma", ";": "semicolon", "\t": "tab"}[delimiter] if len(first) > 1 else "none (one column)"
    return table, [f"delimiter {shown}", f"header {', '.join(first)}" if header else "no header"]


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _unique(names: list[str]) -> list[str]:
    return [f"{n}_{i}" if n in names[:i] else n for i, n in enumerate(names)]


def _kinds(table: pa.Table) -> tuple[list[str], str | None]:
    """Numeric columns, and the first column of image names."""
    numeric = [
        n for n in table.column_names if pa.types.is_floating(table[n].type) or pa.types.is_integer(table[n].type)
    ]
    for name in table.column_names:
        column = table[name]
        if pa.types.is_string(column.type) and pc.all(pc.match_substring_regex(column, _IMAGE)).as_py():
            return numeric, name
    return numeric, None


def _identity(
    table: pa.Table, numeric: list[str], text: str | None, score_column: str | None, where: str
) -> tuple[pa.Array | None, str | None, str]:
    """Keys, or the name of the index column; and a phrase that says which."""
    if text is not None:
        if table[text].null_count:
            raise ValueError(f"{table[text].null_count} image names of {where} are empty")
        return _normal(table[text]), None, f"image names in {text!r}"
    if len(numeric) == 2:
        candidates = [n for n in numeric if n != score_column and _is_index(table[n])]
        if len(candidates) == 1 or (len(candidates) == 2 and score_column is not None):
            one = next(n for n in candidates if n != score_column)
            return None, one, f"index in {one!r}"
    return None, None, "rows in the order of the file"


def _normal(names: pa.ChunkedArray | pa.Array) -> pa.Array:
    """`nXXXXXXXX_YYYY` of each image name; other names lose their folder and extension."""
    short = pc.replace_substring_regex(names, r"^.*[/\\]", "")
    short = pc.replace_substring_regex(short, r"(?i)\.jpe?g$", "")
    image = pc.match_substring_regex(short, r"(?i)^n\d{8}_\d+$")
    short = pc.if_else(image, pc.utf8_lower(short), short)
    return short.combine_chunks() if isinstance(short, pa.ChunkedArray) else short


def _is_index(column: pa.ChunkedArray) -> bool:
    if not pa.types.is_integer(column.type) or column.null_count or not len(column):
        return False
    values = column.to_numpy()
    low = int(values.min())
    if low not in (0, 1) or int(values.max()) != low + len(values) - 1:
        return False
    return bool((np.bincount(values - low) == 1).all())


def _positions(column: pa.ChunkedArray) -> np.ndarray:
    values = column.to_numpy().astype(np.int64)
    return np.asarray(values - values.min())


def _score(numeric: list[str], index: str | None, asked: str | None, table: pa.Table, where: str) -> str:
    if asked is not None:
        if asked not in numeric:
            raise ValueError(f"score_column={asked!r} is no numeric column of {where}; it has {table.schema.names}")
        return asked
    left = [n for n in numeric if n != index]
    if len(left) == 1:
        return left[0]
    if not left:
        kinds = ", ".join(f"{f.name}: {f.type}" for f in table.schema)
        raise ValueError(f"{where} has no numeric column to be the score; it has {kinds}")
    raise ValueError(f"{where} has several numeric columns: {left}; say which is the score with score_column=")


def _ordered(order: Sequence[str], positions: np.ndarray, where: str) -> pa.Array:
    if isinstance(order, str):
        raise TypeError("order= is a list of image names, not one string")
    names = pa.array(order, pa.string())
    if len(names) != len(positions):
        raise ValueError(f"order has {len(names):,} names, {where} has {len(positions):,} rows; they must be as many")
    return _normal(names).take(pa.array(positions))


def _no_repeats(keys: pa.Array, where: str) -> None:
    counts = pc.value_counts(keys)
    often = pc.filter(counts.field("values"), pc.greater(counts.field("counts"), 1))
    if len(often):
        first = ", ".join(map(repr, often.slice(0, 3).to_pylist()))
        raise ValueError(f"{len(often)} keys of {where} occur more than once, first {first}; scores must be one a key")


def _snake(name: str) -> str:
    return re.sub(r"\W+|_+", "_", name.strip()).strip("_").lower() or "score"
