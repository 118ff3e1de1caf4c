"""What a row is: digests of content, seeded hashes of digests, and a `row_id` column.

Anything random in this package is a pure function of (seed, row), so that order and sharding do not matter.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from hf_prune.checks import check_column, check_dataset
from hf_prune.data.arrow import array_of, column_array, gather, positions_of
from hf_prune.data.formats import plain
from hf_prune.data.types import AnySplits

BLOCK = 1 << 16  # rows whose bytes are cut out at once: bounds the Python objects alive
SHORT = 512  # bytes; shorter values are copied rather than viewed
NULL = b"\xff hf_prune: null"  # 0xff begins no UTF-8 text
_MARK_PATH = b"\xff hf_prune: path "
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}

Part = bytes | memoryview | None  # canonical bytes of one value; None is null


def digests(values: Any) -> NDArray[np.uint64]:
    """64-bit digests (n,) of the values' canonical bytes, the same from Arrow, from a list and from an array.

    Canonical bytes: text as UTF-8; bytes as they are; bools and ints as 8 bytes, floats as float64 (float32
    widens exactly), times in nanoseconds; lists as their length, then their elements; dicts as their fields
    in the order of their names. An undecoded image or audio ({"bytes", "path"}) is its bytes, or its path
    where it has none. Null is none of these, and differs from empty.

    Args:
        values: n values: an Arrow array, a list as in a `map` batch, a tensor, or a NumPy array of any number of axes.

    Raises:
        TypeError: decoded images, or values Arrow has no type for.
    Reference: xxh3 of Collet's xxHash.

    >>> bool((digests(["a", "b"]) == digests(pa.array(["a", "b"]))).all())
    True
    """
    hashed = xxhash.xxh3_64_intdigest
    null = hashed(NULL)
    chunks = [
        np.fromiter((null if p is None else hashed(p) for p in parts), np.uint64, len(parts))
        for parts in _blocks(_arrow(values))
    ]
    return np.concatenate(chunks) if chunks else np.empty(0, np.uint64)


def seeded(keys: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A well mixed hash (n,) of (seed, key): splitmix64's finalizer, keyed twice by the mixed seed.

    >>> seeded(np.array([1, 2], np.uint64), 0).tolist() == seeded(np.array([1, 2], np.uint64), 1).tolist()
    False
    """
    first = _mix(np.array([check_seed(seed) & 0xFFFF_FFFF_FFFF_FFFF], np.uint64))
    second = _mix(first)
    return _mix(_mix(np.asarray(keys, np.uint64) ^ first) + second)


def uniform(keys: NDArray[np.uint64], seed: int) -> NDArray[np.float64]:
    """Numbers (n,) strictly between 0 and 1, a pure function of (seed, key): middles of 2**52 equal cells.

    >>> bool(0 < uniform(np.array([7], np.uint64), seed=3)[0] < 1)
    True
    """
    cell = (seeded(keys, seed) >> np.uint64(12)).astype(np.float64)
    return (cell + 0.5) * 2.0**-52


class ContentSum:
    """A digest of many rows that knows no order: the sum of their seeded hashes modulo 2**64.

    >>> one, other = ContentSum(), ContentSum()
    >>> one.add(digests(["a", "b"])), other.add(digests(["b"])), other.add(digests(["a"]))
    (None, None, None)
    >>> one.text == other.text
    True
    """

    def __init__(self) -> None:
        self._sum = np.zeros((), np.uint64)

    def add(self, keys: NDArray[np.uint64], times: NDArray[Any] | None = None) -> None:
        """Add rows by their digests (n,), each as often as `times` (n,) says; once by default."""
        for at in range(0, len(keys), BLOCK):  # so that memory is that of a block
            hashes = seeded(keys[at : at + BLOCK], 0)
            if times is not None:
                hashes *= times[at : at + BLOCK].astype(np.uint64)
            self._sum += hashes.sum(dtype=np.uint64)

    @property
    def text(self) -> str:
        """16 hexadecimal digits."""
        return f"{int(self._sum):016x}"


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E37_79B9_7F4A_7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return x ^ (x >> np.uint64(31))


def check_seed(seed: Any) -> int:
    """`seed` as an int; a TypeError for anything else, bools included."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed={seed!r} is not an integer; give one, for example seed=0")
    return int(seed)


def row_keys(ds: Any, column: str) -> NDArray[np.uint64]:
    """`digests` (n,) of a dataset's id column, read through Arrow in the dataset's row order.

    Raises:
        KeyError: there is no such column.
    """
    return digests(column_array(ds, column))


def occurrence(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many earlier rows have the same key, (n,).

    >>> occurrence(np.array([5, 7, 5, 5], np.uint64)).tolist()
    [0, 0, 1, 2]
    """
    n = len(keys)
    order = np.argsort(keys, kind="stable")
    new = np.ones(n, bool)
    new[1:] = keys[order][1:] != keys[order][:-1]
    starts = np.flatnonzero(new)
    out = np.empty(n, np.int64)
    out[order] = np.arange(n) - np.repeat(starts, np.diff(np.append(starts, n)))
    return out


def check_unique(ids: Any) -> None:
    """Raise a ValueError that lists the first repeated ids with their counts, if an id occurs twice.

    >>> check_unique(["a", "b", "a"])
    Traceback (most recent call last):
    ValueError: 1 id occurs more than once: 'a' (2 times); ...
    """
    counts = pc.value_counts(_arrow(ids))
    many = counts.filter(pc.greater(counts.field("counts"), 1))
    if not len(many):
        return
    first = ", ".join(f"{r['values']!r} ({r['counts']} times)" for r in many.slice(0, 5).to_pylist())
    what = f"{len(many)} id occurs" if len(many) == 1 else f"{len(many)} ids occur"
    more = "" if len(many) <= 5 else ", ..."
    raise ValueError(f"{what} more than once: {first}{more}; ids must tell rows apart, as those of with_row_id(ds) do")


def with_row_id(ds: AnySplits, *, row_id: str = "row_id", columns: Sequence[str] | None = None) -> AnySplits:
    """`ds` with a string column of ids: 32 hex digits of the row's content, "-", number of the copy.

    The digits are a 128-bit digest of the row's stored bytes, all columns in the order of their names (as
    `digests` sees them: an image is its bytes, or its path where it has none; nothing is decoded). The number
    is 0 for the first row with this content, 1 for the second. So equal content has equal ids in every
    process, and another row order changes ids among exact copies only. Columns count: add ids before embeddings and
    scores, or name those that are the row's own.

    The ids are put beside the table, which is not rewritten; a dataset with an indices mapping keeps it,
    unless it shows a row twice: then it is copied to a contiguous one first. Memory: about 150 bytes a row,
    32 MB of data at a time.

    Args:
        ds: a `Dataset`, or a `DatasetDict`, each split of which is treated apart.
        row_id: name of the new column; "row_id" by default.
        columns: names of the columns whose content counts; all by default.

    Returns:
        The kind of dataset that was given, with the new column.

    Raises:
        MissingColumnError: one of `columns` is not there.
        TypeError: a stream, or no dataset.
        ValueError: there is a column of that name already, or no column that counts.
    Reference: xxh3_128 of Collet's xxHash.

    >>> from datasets import Dataset
    >>> ids = with_row_id(Dataset.from_dict({"text": ["a", "b", "a"]}))["row_id"][:]
    >>> [i[-2:] for i in ids], ids[0][:32] == ids[2][:32]
    (['-0', '-0', '-1'], True)
    """
    if isinstance(ds, dict):
        return type(ds)({name: with_row_id(split, row_id=row_id, columns=columns) for name, split in ds.items()})
    from datasets.fingerprint import Hasher

    from hf_prune.data.layout import with_column

    check_dataset(ds, "with_row_id")
    if row_id in ds.column_names:
        raise ValueError(
            f"the dataset has a column {row_id!r} already; use it as it is, remove_columns({row_id!r}) first,"
            " or choose another name with row_id="
        )
    names = sorted(ds.column_names if columns is None else columns)
    for name in names:
        check_column(ds, name, "with_row_id")
    if columns is not None and not names:
        raise ValueError("columns=[] leaves nothing to tell rows apart by; name one, or leave it out")
    rows = _row_digests(ds, names)
    copies = occurrence(_low_half(rows)).tolist()
    ids = pa.array([f"{row.hex()}-{i}" for row, i in zip(rows, copies, strict=True)], pa.string())
    return with_column(ds, row_id, ids, Hasher.hash([ds._fingerprint, "hf_prune.row_id", 1, row_id, names]))


def content_keys(ds: Any) -> NDArray[np.uint64]:
    """Keys (n,) of a dataset's rows by their content and the number of the copy, for one without ids.

    All columns count, as in `with_row_id`: another order of the rows changes keys among exact copies only.
    """
    low = _low_half(_row_digests(ds, sorted(ds.column_names)))
    return low ^ seeded(occurrence(low).astype(np.uint64), 0)


def _low_half(rows: list[bytes]) -> NDArray[np.uint64]:
    """The last 64 bits (n,) of 128-bit digests."""
    return np.frombuffer(b"".join(row[8:] for row in rows), np.uint64) if rows else np.empty(0, np.uint64)


def _row_digests(ds: Any, names: list[str]) -> list[bytes]:
    """128-bit digests of n rows: the digest of the digests of their columns, in this order."""
    if not names:
        return []
    digest = xxhash.xxh3_128_digest
    null = digest(NULL)
    where = positions_of(ds)
    out: list[bytes] = []
    for batch in gather(ds.data.table.select(names), np.arange(len(ds)) if where is None else where):
        columns = [[null if p is None else digest(p) for p in _parts(batch.column(i))] for i in range(len(names))]
        out += [digest(b"".join(row)) for row in zip(*columns, strict=True)]
    return out


def _blocks(values: pa.ChunkedArray) -> Iterator[list[Part]]:
    for chunk in values.chunks:
        for first in range(0, len(chunk), BLOCK):
            yield _parts(chunk.slice(first, BLOCK))


def _arrow(values: Any) -> pa.ChunkedArray:
    """Values of any container as a chunked array."""
    if isinstance(values, pa.ChunkedArray):
        return values
    if not isinstance(values, pa.Array):
        values = plain(values)
        first = None if isinstance(values, np.ndarray) else next((v for v in values if v is not None), None)
        if type(first).__module__.partition(".")[0] == "PIL":
            raise TypeError(
                f"decoded images ({type(first).__name__}) have no stored bytes to hash; read them undecoded:"
                " ds.cast_column(c, Image(decode=False))"
            )
        try:
            values = array_of(values)
        except TypeError as error:
            raise TypeError(f"values of type {type(first).__name__} cannot be hashed: {error}") from error
    return values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])


def _parts(array: pa.Array) -> list[Part]:
    """Canonical bytes of each value of one array, cut out of Arrow's buffers where they can be."""
    array = _plain(array)
    kind, t = array.type, pa.types
    if t.is_null(kind):
        return [None] * len(array)
    if t.is_large_string(kind) or t.is_large_binary(kind):
        parts = _slices(array)
    elif t.is_struct(kind):
        parts = _struct_parts(array)
    elif t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        parts = _list_parts(array)
    else:
        words = _words(array).tobytes()
        parts = [words[i : i + 8] for i in range(0, 8 * len(array), 8)]
    if array.null_count:
        null = pc.is_null(array).to_numpy(zero_copy_only=False)
        for i in np.flatnonzero(null).tolist():
            parts[i] = None
    return parts


def _plain(array: pa.Array) -> pa.Array:
    """The array with its type reduced to numbers, large text or bytes, lists and structs."""
    kind, t = array.type, pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(array.storage)
    if t.is_dictionary(kind):
        return _plain(array.dictionary_decode())
    if t.is_string(kind) or t.is_string_view(kind) or t.is_decimal(kind):
        return array.cast(pa.large_string())
    if t.is_binary(kind) or t.is_fixed_size_binary(kind) or t.is_binary_view(kind):
        return array.cast(pa.large_binary())
    return array


def _words(array: pa.Array) -> NDArray[Any]:
    """Eight bytes for each number or time; 0 under a null."""
    kind, t = array.type, pa.types
    if t.is_date32(kind):
        return _integers(array.cast(pa.int32())) * 86_400 * 10**9
    if t.is_timestamp(kind) or t.is_duration(kind) or t.is_time(kind) or t.is_date64(kind):
        raw = array.cast(pa.int32()) if t.is_time32(kind) else array
        return _integers(raw.cast(pa.int64())) * _NANOSECONDS[getattr(kind, "unit", "ms")]
    if t.is_floating(kind):
        values = pc.fill_null(array, pa.scalar(0.0).cast(kind)) if array.null_count else array
        out: NDArray[Any] = values.to_numpy(zero_copy_only=False).astype(np.float64)
        out[np.isnan(out)] = np.nan  # NaNs differ in bits that mean nothing
        return out
    if t.is_integer(kind) or t.is_boolean(kind):
        return _integers(array)
    raise TypeError(f"values of type {kind} cannot be hashed; cast them to text, numbers, lists or structs")


def _integers(array: pa.Array) -> NDArray[Any]:
    if array.null_count:
        array = pc.fill_null(array, False if pa.types.is_boolean(array.type) else pa.scalar(0).cast(array.type))
    values = array.to_numpy(zero_copy_only=False)
    # the bytes of a uint64 up to 2**63 - 1 are those of the int64
    words: NDArray[Any] = np.ascontiguousarray(values, np.uint64 if values.dtype.kind == "u" else np.int64)
    return words


def _slices(array: pa.Array) -> list[Part]:
    _, offsets, data = array.buffers()
    if len(array) == 0 or data is None:
        return [b""] * len(array)
    at = np.frombuffer(offsets, np.int64, len(array) + 1, 8 * array.offset)
    view: bytes | memoryview = memoryview(data)[at[0] : at[-1]]
    if len(view) < SHORT * len(array):
        view = bytes(view)  # short pieces of bytes are made three times faster than views
    ends = (at - at[0]).tolist()
    return [view[a:b] for a, b in zip(ends, ends[1:], strict=False)]


def _framed(part: Part) -> bytes:
    """A value among others: its length goes first, so that ["ab", "c"] is not ["a", "bc"]."""
    return struct.pack("<q", -1) if part is None else struct.pack("<q", len(part)) + bytes(part)


def _list_parts(array: pa.Array) -> list[Part]:
    """Length, then numbers as they are (and a map of the nulls if there are any), other values framed."""
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        values = array.values.slice(array.offset * size, len(array) * size)
        offsets = np.arange(len(array) + 1, dtype=np.int64) * size
    else:
        offsets = np.asarray(array.offsets.to_numpy()).astype(np.int64)
        values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
        offsets -= offsets[0]
    values = _plain(values)
    kind, t = values.type, pa.types
    if t.is_nested(kind) or t.is_large_string(kind) or t.is_large_binary(kind) or t.is_null(kind):
        framed = [_framed(part) for part in _parts(values)]
        ends = offsets.tolist()
        spans = zip(ends, ends[1:], strict=False)
        return [struct.pack("<q", b - a) + b"".join(framed[a:b]) for a, b in spans]
    rows = _number_rows(_words(values), offsets)
    if values.null_count:
        null = pc.is_null(values).to_numpy(zero_copy_only=False).astype(np.uint8)
        held = np.add.reduceat(np.append(null, 0), offsets[:-1]) * (np.diff(offsets) > 0)
        for i in np.flatnonzero(held).tolist():
            rows[i] = bytes(rows[i] or b"") + null[offsets[i] : offsets[i + 1]].tobytes()
    return rows


def _number_rows(words: NDArray[Any], offsets: NDArray[np.int64]) -> list[Part]:
    """Rows of 8-byte words, each behind its length, built in one array."""
    n = len(offsets) - 1
    if n == 0:
        return []
    heads = offsets[:-1] + np.arange(n)
    out = np.empty(n + len(words), np.int64)
    body = np.ones(len(out), bool)
    body[heads] = False
    out[heads] = np.diff(offsets)
    out[body] = words.view(np.int64)
    view = memoryview(out.data).cast("B")
    ends = (8 * np.append(heads, len(out))).tolist()
    return [view[a:b] for a, b in zip(ends, ends[1:], strict=False)]


def _struct_parts(array: pa.Array) -> list[Part]:
    names = sorted(field.name for field in array.type)
    fields = {name: _parts(array.field(name)) for name in names}
    if names == ["bytes", "path"] and array.type.field("bytes").type in (pa.binary(), pa.large_binary()):
        pairs = zip(fields["bytes"], fields["path"], strict=True)
        return [
            data if data is not None else None if path is None else _MARK_PATH + bytes(path) for data, path in pairs
        ]
    heads = [_framed(name.encode()) for name in names]
    rows = zip(*(fields[name] for name in names), strict=True)
    return [b"".join(h + _framed(p) for h, p in zip(heads, row, strict=True)) for row in rows]
