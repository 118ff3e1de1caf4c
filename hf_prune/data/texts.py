"""Rows as texts: one column, several columns joined, a nested path, or a chat column."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hf_prune.checks import missing_column
from hf_prune.data import chat
from hf_prune.data.batch import Batch
from hf_prune.data.utf8 import check_utf8

EMPTY = "is empty"
NULL = "is null"


def columns_of(text: str | Sequence[str]) -> tuple[str, ...]:
    """`text=` as a tuple of columns.

    Raises:
        ValueError: it names none.

    >>> columns_of("text"), columns_of(["title", "body"])
    (('text',), ('title', 'body'))
    """
    names = (text,) if isinstance(text, str) else tuple(text)
    if not names or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"text={text!r} names no column; give a column, or a list of columns")
    return names


def check_bad(bad: Mapping[int, str], text: str | Sequence[str], on_bad: str) -> None:
    """Raise for rows of a batch that cannot be scored, unless they get NaN.

    Args:
        bad: why, by number of the row in the batch.
        text: column, or columns, for the message.
        on_bad: "raise" or "nan".

    Raises:
        ValueError: there are some, and `on_bad` is "raise".
    """
    if bad and on_bad == "raise":
        row = min(bad)
        more = f", and {len(bad) - 1} more are bad" if len(bad) > 1 else ""
        raise ValueError(
            f"column {text!r}: row {row} of this batch {bad[row]}{more}; drop such rows first, or pass on_bad='nan'"
        )


def read_column(batch: Batch, path: str) -> Any:
    """One column, or a field of a struct column named as `column.field`; Arrow where it is stored so.

    Raises:
        MissingColumnError: no such column, or no such field in it.
    """
    if path in batch:
        stored = batch._stored(path)
        return batch[path] if stored is None else stored
    name, *inner = path.split(".")
    if not inner or name not in batch:
        raise missing_column(path, list(batch), batch.who)
    values = batch.arrow(name)
    for field in inner:
        if not pa.types.is_struct(values.type) or values.type.get_field_index(field) < 0:
            there = [f.name for f in values.type] if pa.types.is_struct(values.type) else []
            raise missing_column(path, [*batch, *(f"{name}.{f}" for f in there)], batch.who)
        values = pc.struct_field(values, field)
    return values


def read_texts(
    batch: Batch,
    columns: Sequence[str],
    join: str = " ",
    template: Callable[[list[dict[str, Any]]], str] | None = None,
) -> tuple[list[str], dict[int, str], bool]:
    """Read each row as one text.

    Args:
        batch: the rows.
        columns: joined in this order; empty and null parts of several columns are left out.
        join: what stands between them.
        template: renders a chat, if it is the only column; else its lines are `role: content`, with what else a turn
            holds as JSON (see `hf_prune.data.chat`).

    Returns:
        The texts; the rows without any, with the reason; whether `template` made the texts.

    Raises:
        TypeError: a row holds something else than text or a chat.
        ValueError: a text that has no UTF-8, or bytes that are none.
    """
    bad: dict[int, str] = {}
    read = [_strings(batch, path, template if len(columns) == 1 else None) for path in columns]
    if len(columns) == 1:
        values, rendered = read[0]
        texts = ["" if v is None else v for v in values]
        bad = {row: NULL if values[row] is None else EMPTY for row, v in enumerate(texts) if not v}
        return texts, bad, rendered
    texts = [join.join(part for part in parts if part) for parts in zip(*(values for values, _ in read), strict=True)]
    return texts, {row: EMPTY for row, v in enumerate(texts) if not v}, False


def _strings(batch: Batch, path: str, template: Callable[..., str] | None) -> tuple[list[str | None], bool]:
    values = read_column(batch, path)
    plain = isinstance(values, pa.Array)
    is_text = plain and (pa.types.is_string(values.type) or pa.types.is_large_string(values.type))
    rows = _objects(values, batch.who) if plain else list(values)
    if is_text:
        return rows, False
    rendered = False
    for row, value in enumerate(rows):
        if value is None or isinstance(value, str):
            continue
        try:
            turns = chat.turns_of(value)
        except TypeError as error:
            raise TypeError(f"column {path!r}: row {row} of this batch {error}") from error
        if not any(turn.said for turn in turns):
            rows[row] = ""
        elif template is not None:
            rows[row], rendered = template([turn.for_template for turn in turns]), True
        else:
            rows[row] = "\n".join(f"{turn.role}: {turn.said}" for turn in turns)
    check_utf8(rows, batch.who)
    return rows, rendered


def _objects(values: pa.Array, who: str) -> list[Any]:
    """Rows as Python objects, JSON columns decoded as `datasets` decodes them in a stream."""
    try:
        rows = values.to_pylist()
    except UnicodeDecodeError as error:
        for row, value in enumerate(values):
            try:
                value.as_py()
            except UnicodeDecodeError:
                raise ValueError(
                    f"{who}: the text of row {row} of this batch is not valid UTF-8; decode the bytes with the right "
                    "encoding first"
                ) from error
        raise
    decode = _json_decoder(values.type)
    return rows if decode is None else [decode(row) for row in rows]


def _json_decoder(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """What turns an object of an Arrow type that holds JSON somewhere into one without; None where there is none."""
    if getattr(kind, "extension_name", None) == "arrow.json":
        return lambda value: None if value is None else json.loads(value)
    if pa.types.is_struct(kind):
        inner = {f.name: d for f in kind if (d := _json_decoder(f.type)) is not None}
        return (
            (lambda value: value and {k: inner[k](v) if k in inner else v for k, v in value.items()}) if inner else None
        )
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        item = _json_decoder(kind.value_type)
        return (lambda value: value and [item(v) for v in value]) if item is not None else None
    return None
