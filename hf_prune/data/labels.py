"""Columns of labels: what is a class, and which rows have none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def is_text(kind: pa.DataType) -> bool:
    """Whether labels of this Arrow type are names."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def check_classes(
    values: pa.Array | None, name: str, start: int = 0, *, of: str = "", meant: str = "string"
) -> pa.Array:
    """Give labels back if each is a class: a whole number from 0, a bool, or a name.

    A negative number is none: `ClassLabel` and the hidden test sets of GLUE have -1 where a row has no label, losses
    have -100.

    Args:
        values: (n,) labels.
        name: their column.
        start: number of the first row.
        of: what rows are counted in, for the messages: " of this batch".
        meant: type to cast to where negative numbers are meant as they are; "" if none helps.

    Raises:
        TypeError: numbers with a fraction, lists or anything else that is no class.
        ValueError: a label that is null or negative.

    >>> check_classes(pa.array([0, 2, -1]), "label")
    Traceback (most recent call last):
    ...
    ValueError: column 'label': row 2 has class -1, which stands for no label (classes count from 0); label it, or \
drop such rows first; where it is meant as it is, cast the column to string
    """
    assert values is not None
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or is_text(kind) or pa.types.is_null(kind)):
        several = " (several labels a row: multi-label data)" if pa.types.is_nested(kind) else ""
        raise TypeError(
            f"column {name!r} holds {kind}{several}, not classes; name a ClassLabel, integer or string column with one "
            "class a row"
        )
    if values.null_count:
        row = start + int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"column {name!r} is null in row {row}{of}; label it, or drop such rows first")
    if pa.types.is_null(kind):  # an empty batch of lists has no type
        return values.cast(pa.int64())
    if pa.types.is_signed_integer(kind) and len(values) and pc.min(values).as_py() < 0:
        row = int(np.flatnonzero(values.to_numpy(zero_copy_only=False) < 0)[0])
        hint = f"; where it is meant as it is, cast the column to {meant}" if meant else ""
        raise ValueError(
            f"column {name!r}: row {start + row}{of} has class {values[row].as_py()}, which stands for no label "
            f"(classes count from 0); label it, or drop such rows first{hint}"
        )
    return values


def places_among(values: pa.Array, classes: Sequence[Any], name: str) -> NDArray[np.int64]:
    """Place (n,) of each label of a batch among the classes that were fitted.

    Raises:
        TypeError: the labels are no classes, or names where those fitted are numbers.
        ValueError: a label is null or negative, or was not there when fitting.

    >>> places_among(pa.array(["dog", "cat"]), ("cat", "dog"), "label").tolist()
    [1, 0]
    """
    of = " of this batch"
    values, text = check_classes(values, name, of=of), isinstance(classes[0], str)
    if len(values) and is_text(values.type) != text:
        raise TypeError(
            f"column {name!r} holds {values.type}, the classes that were fitted are {'names' if text else 'numbers'}, "
            f"as {classes[0]!r}; give labels as they were when fitting"
        )
    # one type for both: as bools, 1 and 2 would be one class
    common = pa.large_string() if text else pa.uint64() if max(classes) >= 2**63 else pa.int64()
    known = pa.array([value if text else int(value) for value in classes], common)
    places = pc.index_in(values.cast(common, safe=False), value_set=known)
    if places.null_count:
        row = int(np.flatnonzero(places.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(
            f"column {name!r}: {values[row].as_py()!r} in row {row}{of} is no class that was fitted: none of "
            f"the {len(classes)} classes; fit on data with all classes"
        )
    return np.asarray(places.to_numpy(), np.int64)
