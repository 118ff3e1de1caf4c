"""Rows as texts: one column, several columns joined, a nested path, or a chat column."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hf_prune.batch import Batch, missing_column

EMPTY = "is empty"
NULL = "is null"


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
        template: renders a chat, if it is the only column; else its lines are `role: content`.

    Returns:
        The texts; the rows without any, with the reason; whether `template` made the texts.

    Raises:
        TypeError: a row holds something else than text or a chat.
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
    rows = values.to_pylist() if plain else list(values)
    if is_text:
        return rows, False
    rendered = False
    for row, value in enumerate(rows):
        if value is None or isinstance(value, str):
            continue
        if not _is_chat(value):
            raise TypeError(
                f"column {path!r}: row {row} of this batch is {type(value).__name__}, neither text nor a chat "
                "[{'role': ..., 'content': ...}]; name a text column"
            )
        turns = [{**turn, "role": str(turn["role"]), "content": _content(turn["content"])} for turn in value]
        if not any(turn["content"] for turn in turns):
            rows[row] = ""
        elif template is not None:
            rows[row], rendered = template(turns), True
        else:
            rows[row] = "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    return rows, rendered


def _is_chat(value: Any) -> bool:
    turns = value.tolist() if hasattr(value, "tolist") else value
    return isinstance(turns, list) and all(isinstance(t, Mapping) and "role" in t and "content" in t for t in turns)


def _content(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "\n".join(str(part["text"]) for part in content if isinstance(part, Mapping) and part.get("text"))
