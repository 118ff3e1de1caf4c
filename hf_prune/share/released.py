"""Published score files (CSV of ImageNet pruning metrics and the like) as datasets, with what was inferred said."""

from __future__ import annotations

import csv
import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
from datasets import Dataset, DatasetInfo, Features, Value

logger = logging.getLogger(__name__)
IMAGENET_ROWS = 1_281_167
DELIMITERS = ("\t", ";", ",")  # in this order: where each row has a semicolon, commas are those of decimals
SAMPLE = 1 << 16  # bytes that are looked at to find out the layout
_IMAGE = r"(?i)^(?:.*[/\\])?(n\d{8}_\d+)(?:\.jpe?g)?$"
_FILE = re.compile(r"(?:ImageNet-1K_)?(?P<name>.+?)(?:\.(?:csv|tsv|txt))?(?:\.gz)?", re.IGNORECASE)
_NULLS = ("", "NA", "null", "None")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?|[+-]?(?:inf|nan|infinity)", re.IGNORECASE)
_QUOTED = rb"\"[+-]?\d+,\d+(?:[eE][+-]?\d+)?\""  # a number with a decimal comma, in a file cut at commas or not
_BARE = rb"(?:^|[\n;\t])[ ]*[+-]?\d*,\d+(?:[eE][+-]?\d+)?[ ]*(?:$|[\r\n;\t])"
_RANKS = ("rank", "ranking", "order")  # permutations of the rows that are no index


def read_released_scores(
    path: str | Path | IO[bytes],
    *,
    score_column: str | None = None,
    key_column: str | Literal[False] | None = None,
    order: Sequence[str] | None = None,
    header: bool | None = None,
) -> Dataset:
    r"""Read a published score file. High means keep, as in the files of the ImageNet release.

    The layout is inferred, never silently: the dataset's `info.description` says what was found, and it is logged; what
    can be read in two ways is refused. The delimiter is one of `,` `;` and tab; with the last two, decimals may have a
    comma. There is a header where the first row is no row of numbers and names. Image names
    (`n01440764/n01440764_10026.JPEG`) become the column `key`, as `n01440764_10026`; ids of another kind become it as
    they are. Of two numeric columns, one that is a permutation of 0..n-1 or 1..n is the column `index` (counted from
    0); rows stay in the order of the file, so join by it, not by position. A lone score column gets the keys of
    `order`, or else the row number as `index`; the usual order of ImageNet is class folders by WordNet id, then file
    names.

    Args:
        path: the file, in UTF-8, or an open binary file.
        score_column: which column holds the score, if several may.
        key_column: which column holds the ids, if several may or they are numbers; False if none does, and the rows
            are in a known order.
        order: n image names, one a row, or for a file with an index one for each index.
        header: whether the first row is one; by default found out.

    Returns:
        n rows: `key` or `index`, and the score as float64, named after the file
        (`ImageNet-1K_influence-max.csv` -> `influence_max`).

    Raises:
        ValueError: no or several numeric columns, repeated keys, rows of unequal length, scores that are no numbers,
            several columns of ids, or a layout that can be read in two ways.

    >>> import io
    >>> ds = read_released_scores(io.BytesIO(b"index,score\n1,0.5\n0,0.25\n"))
    >>> ds[0], ds.info.description.split("; ")[1]
    ({'index': 1, 'score': 0.5}, 'delimiter comma')
    """
    name = path if isinstance(path, (str, Path)) else getattr(path, "name", "")
    where = Path(name).name if isinstance(name, (str, Path)) and str(name) else "the file"
    table, said = _table(path, where, header)
    numeric = [n for n in table.column_names if _is_numeric(table[n].type)]
    text = _key_column(table, numeric, key_column, where)
    numeric = [n for n in numeric if n != text]
    index = _index_column(table, numeric, score_column)
    score = _score(numeric, index, score_column, table, where)
    said.append(f"score column {score!r}")
    values = table[score].cast(pa.float64())
    if values.null_count:
        row = pc.index(pc.is_null(values), True).as_py()
        raise ValueError(f"{values.null_count} scores of {where} are empty, first in row {row}; fill or drop them")
    positions = np.arange(len(values))
    keys = None
    if text is not None:
        keys, imagenet = _keys(table[text], text, where)
        said.append(f"{'image names' if imagenet else 'ids'} in {text!r}")
    elif index is not None:
        positions = _positions(table[index])
        moved = bool((positions != np.arange(len(values))).any())
        said.append(f"index in {index!r}" + (", rows in another order: join by it" if moved else ""))
    else:
        said.append("rows in the order of the file")
    left = [n for n in table.column_names if n not in (score, text, index if text is None else None)]
    if left:
        said.append(f"left out {', '.join(left)}")
    if order is not None:
        if keys is not None:
            raise ValueError(f"{where} has its own names, in column {text!r}; leave order= out")
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


def _table(path: str | Path | IO[bytes], where: str, header: bool | None) -> tuple[pa.Table, list[str]]:
    """The file with plain column names, and what was inferred."""
    if isinstance(path, (str, Path)):
        with pa.input_stream(str(path)) as stream:  # a .gz is read as what is in it
            data = stream.read()
    else:
        data = path.read()
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is no text in UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    lines = [line for line in data[:SAMPLE].decode("utf-8-sig", "replace").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{where} is empty")
    if len(data) > SAMPLE and len(lines) > 2:
        lines.pop()  # cut off
    delimiter, rows = _split(lines)
    comma = re.search(_QUOTED if delimiter == "," else _QUOTED + b"|" + _BARE, data) is not None
    first = rows[0]
    if header is None:
        header = _has_header(first, rows[1:])
    if header is None:
        raise ValueError(
            f"the first row of {where}, {lines[0]!r}, may be a header as pandas writes one, or a row like the others; "
            "say which with header=True or header=False"
        )
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
            convert_options=pcsv.ConvertOptions(
                null_values=list(_NULLS), strings_can_be_null=True, decimal_point="," if comma else "."
            ),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{where} cannot be read as a table: {error}") from error
    shown = {",": "comma", ";": "semicolon", "\t": "tab"}[delimiter] if len(first) > 1 else "none (one column)"
    said = [f"delimiter {shown}", f"header {', '.join(first)}" if header else "no header"]
    return table, said + (["decimal comma"] if comma else [])


def _split(lines: list[str]) -> tuple[str, list[list[str]]]:
    """The delimiter that cuts all rows into as many fields, one of them a number; and the fields of each row."""
    for delimiter in DELIMITERS:
        rows = [[field.strip() for field in row] for row in csv.reader(lines, delimiter=delimiter)]
        width = len(rows[0])
        if width > 1 and all(len(row) == width for row in rows):
            if any(all(_is_number(row[i]) or row[i] in _NULLS for row in rows[1:] or rows) for i in range(width)):
                return delimiter, rows
    most = max(reversed(DELIMITERS), key=lines[0].count)
    return most, [[field.strip() for field in row] for row in csv.reader(lines, delimiter=most)]


def _is_number(field: str) -> bool:
    return _NUMBER.fullmatch(field) is not None


def _has_header(first: list[str], rest: list[list[str]]) -> bool | None:
    """Whether the first row is one of names of columns; None where it may be one."""
    if any(re.match(_IMAGE, field) for field in first):
        return False
    if not rest:
        return not _is_number(first[-1])
    columns = list(zip(first, *(row for row in rest if len(row) == len(first)), strict=True))
    numbers = [c for c in columns if all(_is_number(f) or f in _NULLS for f in c[1:])]
    names = [c[0] for c in numbers if not _is_number(c[0]) and c[0] not in _NULLS]
    if names:
        return not all(re.fullmatch(r"[-+\d.,'_ ]*\d[\d.,'_ %]*", name) for name in names)  # numbers that are not read
    if any(len(c) > 1 and all(re.match(_IMAGE, field) for field in c[1:]) for c in columns):
        return True
    counted = [f for f in first if f] in ([str(i) for i in range(k)] for k in range(1, len(first) + 1))
    if counted and first[0] == "":  # the index of pandas has no name
        return True
    if not numbers:
        return not _is_number(first[-1])
    if counted and any(all(re.search(r"[.,eE]", f) or f in _NULLS for f in c[1:]) for c in numbers):
        return None
    return False


def _unique(names: list[str]) -> list[str]:
    return [f"{n}_{i}" if n in names[:i] else n for i, n in enumerate(names)]


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _key_column(table: pa.Table, numeric: list[str], asked: str | Literal[False] | None, where: str) -> str | None:
    """The column of ids: the one that was asked for, that of image names, or the only one of texts."""
    if asked is False:
        return None
    if asked is not None:
        if asked not in table.column_names:
            raise ValueError(f"key_column={asked!r} is no column of {where}; it has {table.column_names}")
        return asked
    texts = [n for n in table.column_names if pa.types.is_string(table[n].type)]
    images = [n for n in texts if pc.any(pc.match_substring_regex(table[n], _IMAGE)).as_py()]
    found = images or texts
    if len(found) > 1 and numeric:
        raise ValueError(f"{where} has several columns that may be ids: {found}; say which with key_column=")
    return found[0] if found and numeric else None


def _keys(column: pa.ChunkedArray, name: str, where: str) -> tuple[pa.Array, bool]:
    """Ids (n,) as text, and whether they are image names: then without folder and extension."""
    if column.null_count:
        raise ValueError(f"{column.null_count} names of {where} are empty, in column {name!r}")
    ids = column.cast(pa.string())
    images = pc.match_substring_regex(ids, _IMAGE)
    if pc.all(images).as_py():
        return _normal(ids), True
    if pc.any(images).as_py():
        row = pc.index(images, False).as_py()
        raise ValueError(
            f"{where} mixes names of ImageNet's images with others in column {name!r}, first {ids[row].as_py()!r} in "
            f"row {row}; mend the file, or pass key_column=False to take the rows in the order of the file"
        )
    return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids, False


def _index_column(table: pa.Table, numeric: list[str], score_column: str | None) -> str | None:
    """Of two numeric columns the one that counts the rows."""
    if len(numeric) != 2:
        return None
    found = [n for n in numeric if n != score_column and n.lower() not in _RANKS and _is_index(table[n])]
    return found[0] if len(found) == 1 else None


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
        raise ValueError(
            f"{where} has no numeric column to be the score; it has {kinds}: numbers have a decimal point, or all of "
            "them a comma, and no signs for thousands"
        )
    raise ValueError(
        f"{where} has several numeric columns: {left}; say which is the score with score_column=, and if another holds "
        "the ids, key_column=. Decimals with commas are read from files with ';' or tabs between the columns"
    )


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
        raise ValueError(
            f"{len(often)} keys of {where} occur more than once, first {first}; scores must be one a key: name another "
            "key_column=, or key_column=False to take the rows in the order of the file"
        )


def _snake(name: str) -> str:
    return re.sub(r"\W+|_+", "_", name.strip()).strip("_").lower() or "score"
