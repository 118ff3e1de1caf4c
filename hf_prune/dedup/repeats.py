"""`RemoveRepeats`: texts without the passages that occur elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_prune.checks import check_choice
from hf_prune.data.batch import Batch
from hf_prune.data.formats import as_table, is_table, with_columns
from hf_prune.data.reading import texts_of
from hf_prune.data.texts import columns_of, read_column
from hf_prune.data.words import UNITS, character_table, graphemes, tokens
from hf_prune.dedup.passages import Keep
from hf_prune.dedup.shingles import Unit
from hf_prune.dedup.substring import SubstringDedup
from hf_prune.values import Value

_NEAR = 256  # characters that are looked at on each side of a cut
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, eq=False)
class RemoveRepeats(Value):
    """Callable for `Dataset.map(..., batched=True)` that cuts the repeated passages out of a text column.

    A cut begins with the first repeated token and ends where the next token that stays begins; never in a word, nor in
    what a reader sees as one character. The tokens that stay are those that were there: white space stays between them
    where there was some, and words do not run together. Sentences may be left broken: what is cut was repeated, not
    whole.

    Args:
        scorer: `SubstringDedup` fitted on one column.
        keep: which occurrences stay. "one" (the default) leaves the first occurrence of every passage where it is, the
            one in the text with the lowest digest (its exact copies keep it as well); "none" cuts all occurrences.
            Against a reference both cut all.

    Raises:
        ValueError: another `keep`, or a scorer of several columns.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"text": ["a b c d e f", "x b c d e y", "q r s"]})
    >>> RemoveRepeats(SubstringDedup.fit(ds, min_tokens=3), keep="none")(ds[:])
    {'text': ['a f', 'x y', 'q r s']}
    """

    version: ClassVar[int] = 2

    scorer: SubstringDedup
    _: KW_ONLY
    keep: Keep = "one"

    def check_fields(self) -> None:
        check_choice("keep", self.keep, get_args(Keep))
        if len(columns_of(self.scorer.text)) != 1 or "." in columns_of(self.scorer.text)[0]:
            raise ValueError(
                f"passages are cut out of one plain column, not of {self.scorer.text!r}; fit on one column"
            )

    def __call__(self, batch: Any, rank: int | None = None) -> Any:
        """Edit a batch as `map` hands it over.

        Args:
            batch: rows, in whatever format.
            rank: number of the worker; not used.

        Returns:
            The column with shorter texts (or lists of ids); nulls stay. Of a table or a data frame the whole table.

        Raises:
            MissingColumnError: no such column.
            TypeError: a column of chats.
            ValueError: a text that was not there when fitting, unless against a reference.
        """
        who = type(self).__name__
        table = as_table(batch, who) if is_table(batch) else None
        view = Batch(batch if table is None else table, who)
        (name,) = columns_of(self.scorer.text)
        texts = texts_of(view, name, ids=True)
        if _has_text(texts.array.type) and not _holds_text(view, name):
            raise TypeError(
                f"{who}: column {name!r} holds chats, which would come back as text; write the text into a column "
                "of its own first, and fit on that"
            )
        spans, at = self.scorer.locate(view, texts)
        values = texts.array.to_pylist()
        for row in np.flatnonzero(~texts.null).tolist():
            cut = spans.of_text(int(at[row]), self.keep)
            if cut:
                values[row] = self._without(values[row], cut)
        if table is None:
            return {name: values}
        return with_columns(table, {name: pa.array(values, table.schema.field(name).type)})

    def _without(self, value: Any, cut: list[tuple[int, int]]) -> Any:
        if isinstance(value, str):
            edges = _token_starts(value, self.scorer.unit)
            return without(value, [(edges[start], edges[end]) for start, end in cut], _boundaries(value, edges))
        for start, end in reversed(cut):
            del value[start:end]
        return value


def _has_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _holds_text(view: Batch, name: str) -> bool:
    """Whether a column holds texts as they are, or nothing, and not what is read as texts."""
    values = read_column(view, name)
    if isinstance(values, pa.Array):
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        return _has_text(kind) or pa.types.is_null(kind)
    return isinstance(next((v for v in values if v is not None), ""), str)


def without(text: str, cut: Sequence[tuple[int, int]], boundaries: NDArray[np.int64]) -> str:
    r"""A text without some stretches; the words on both sides stay apart.

    Args:
        text: text to edit.
        cut: stretches [start, end) of characters, ascending. Each is shortened to the boundaries within it.
        boundaries: (b,) positions where the text may be cut, ascending.

    Returns:
        The text. Of the white space before a cut and at its end stays what has more line feeds, else what comes first.
        Words that would run into one are parted by the first white space of what is cut, or by a space.

    >>> without("I grow roses. Click here. Tulips", [(12, 26)], np.arange(33))
    'I grow roses Tulips'
    """
    out, done = [""], 0
    for first, last in cut:
        start = int(boundaries[np.searchsorted(boundaries, first)])
        end = int(boundaries[np.searchsorted(boundaries, last, "right") - 1])
        if start >= end:
            continue
        left = out.pop() + text[done:start]
        gap, right = text[start:end], text[end : end + _NEAR]
        if left and right and not left.isspace() and not right[0].isspace():
            before, behind = left[len(left.rstrip()) :], gap[len(gap.rstrip()) :]
            if behind.count("\n") > before.count("\n"):
                left = left.rstrip() + behind
            elif not before and not behind and _run_together(left, right):
                left += next(iter(_SPACES.findall(gap)), " ")
            elif not before:
                left += behind
        out += [left] if left.isspace() else [left, ""]
        done = end
    return "".join(out) + text[done:]


def _run_together(left: str, right: str) -> bool:
    tail = left[-_NEAR:]
    tail = tail[len(tail) - len((tail.split() or [""])[-1]) :]
    head = (right.split() or [""])[0]
    apart = len(tokens(tail, "token")) + len(tokens(head, "token"))
    return len(tokens(tail + head, "token")) != apart or len(tail) not in graphemes(tail + head)


def _token_starts(text: str, unit: Unit) -> NDArray[np.int64]:
    """Position at which each token begins, and the end of the text."""
    from hf_prune.dedup import _kernels

    data = np.frombuffer(text.encode(), np.uint8)
    hashes, starts = np.empty(len(data) + 1, np.uint64), np.empty(len(data) + 1, np.int32)
    count = _kernels.tokenize(data, 0, len(data), character_table(), UNITS.index(unit), False, hashes, starts)
    places = np.append(np.cumsum(data & 0xC0 != 0x80) - 1, len(text))  # of each byte's character
    return np.asarray(places[np.append(starts[:count], len(data))])


def _boundaries(text: str, edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those positions of beginning tokens that lie neither in a word nor in what a reader sees as one character."""
    words = _token_starts(text, "token")
    if len(edges) > len(words):  # tokens are characters
        white = [i for i, c in enumerate(text) if c.isspace()]
        edges = np.union1d(words, white)
    return edges if text.isascii() and "\r\n" not in text else np.intersect1d(edges, graphemes(text))
