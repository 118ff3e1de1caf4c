"""Python texts as UTF-8: what has none is told, with its row."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa


def check_utf8(texts: Sequence[str | None], who: str) -> None:
    """Refuse texts that have no UTF-8.

    Raises:
        ValueError: a text with half of a surrogate pair.
    """
    for row, text in enumerate(texts):
        if text is None or text.isascii():
            continue
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{who}: the text of row {row} of this batch holds {error.object[error.start]!r}, half of a surrogate "
                "pair, which has no UTF-8; encode it with errors='replace' and decode it again"
            ) from error


def string_array(texts: Sequence[str | None], who: str) -> pa.LargeStringArray:
    """Texts and nulls as UTF-8.

    Raises:
        ValueError: a text with half of a surrogate pair.
    """
    try:
        return pa.array(texts, pa.large_string())
    except UnicodeEncodeError:
        check_utf8(texts, who)
        raise
