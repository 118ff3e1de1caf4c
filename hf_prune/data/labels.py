"""Columns of labels: what is a class, and which rows have none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hf_prune.data import identity
from hf_prune.data.reading import vector_blocks
from hf_prune.data.types import Rows

_UNNAMED = re.compile(r"(label|class)?[\W_]*\d+", re.IGNORECASE)


def model_classes(config: Any) -> tuple[str, ...] | None:
    """Names of the classes in a configuration of transformers, in their order; None where it has none."""
    known = getattr(config, "id2label", None) or {}
    return tuple(str(known[i]) for i in range(len(known))) if set(known) == set(range(len(known))) and known else None


def check_class_names(ours: Sequence[str] | None, theirs: Sequence[str] | None, label: str | None, model: str) -> None:
    """Raise a ValueError that lists both if two sides name their classes, and one class has two names.

    Names are compared without case and punctuation, as far as the shorter one goes: "neg" is "NEGATIVE". Names like
    "LABEL_1" or "7" are none. Classes that only one side has are not looked at.

    Args:
        ours: names of the dataset's classes; None where they are numbers alone.
        theirs: names of the model's (or the log's) classes.
        label: column of the dataset.
        model: what has the other names, for the message.

    >>> check_class_names(["cat", "dog"], ["Dog", "Cat"], "label", "the model")
    Traceback (most recent call last):
    ...
    ValueError: column 'label' has the classes 0: 'cat', 1: 'dog'; the model has 0: 'Dog', 1: 'Cat'. If they mean the \
same in this order, take the names away: ds.cast_column('label', datasets.Value('int64'))
    """
    if not ours or not theirs or any(all(_UNNAMED.fullmatch(name) for name in names) for names in (ours, theirs)):
        return
    for mine, other in zip(ours, theirs, strict=False):
        a, b = (re.sub(r"[\W_]+", "", name).casefold() for name in (mine, other))
        if a != b and not (min(len(a), len(b)) > 1 and (a.startswith(b) or b.startswith(a))):
            listed = [", ".join(f"{i}: {name!r}" for i, name in enumerate(names[:10])) for names in (ours, theirs)]
            more = [", ..." if len(names) > 10 else "" for names in (ours, theirs)]
            raise ValueError(
                f"column {label!r} has the classes {listed[0]}{more[0]}; {model} has {listed[1]}{more[1]}. "
                f"If they mean the same in this order, take the names away: ds.cast_column({label!r}, "
                "datasets.Value('int64'))"
            )


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
        name: column of the labels, for the messages.
        start: index of the first row in the dataset, from which messages count.
        of: words behind the index of a row in messages, as " of this batch".
        meant: name of the type to cast to where negative numbers are meant as they are; "" if none helps.

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
    """Index (n,) of each label of a batch among the classes that were fitted.

    Args:
        values: (n,) labels.
        classes: labels that were fitted, all numbers or all names.
        name: column of the labels, for the messages.

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


class LabelledBlock(NamedTuple):
    """Rows that stand together: (b, d) finite floats, their (b,) classes, (b,) digests of both."""

    x: NDArray[Any]
    labels: pa.Array
    keys: NDArray[np.uint64]


def labelled_blocks(ds: Rows, embedding: str, label: str, who: str) -> Iterator[LabelledBlock]:
    """An embedding column and a column of classes, in checked blocks.

    Args:
        ds: `Dataset` or `IterableDataset` with both columns.
        embedding: column of vectors.
        label: column of classes.
        who: who reads, for the messages, as "Moderate.fit".

    Raises:
        TypeError, ValueError: what `reading.vector_blocks` and `check_classes` raise.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"embedding": [[1.0], [2.0]], "label": ["cat", "dog"]})
    >>> [block.labels.to_pylist() for block in labelled_blocks(ds, "embedding", "label", "demo")]
    [['cat', 'dog']]
    """
    for block in vector_blocks(ds, embedding, who, label):
        labels = check_classes(block.beside, label, block.start)
        yield LabelledBlock(x=block.x, labels=labels, keys=pair_keys(block.x, labels))


def pair_keys(x: Any, labels: Any) -> NDArray[np.uint64]:
    """Digests (n,) of rows and their labels taken together."""
    return identity.seeded(identity.digests(x), 0) ^ identity.seeded(identity.digests(labels), 1)
