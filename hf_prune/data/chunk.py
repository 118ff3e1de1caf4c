"""Texts cut into chunks of equal length: what methods that add over tokens need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hf_prune.checks import check_dataset, missing_column
from hf_prune.data.batch import Batch
from hf_prune.data.layout import like_format
from hf_prune.data.words import spaced_spans
from hf_prune.values import Value


def chunks_of(text: str, words: int, min_words: int = 1) -> list[str]:
    """A text cut behind every `words` words; white space inside a chunk stays.

    Words are runs of anything but white space; in scripts without spaces between words they are cut further, by
    Unicode's word boundaries (see `hf_prune.data.words`).

    Args:
        text: to cut.
        words: of a chunk.
        min_words: a last chunk of fewer words is dropped.

    >>> chunks_of("one two  three", 2)
    ['one two', 'three']
    >>> chunks_of("東京都は、日本", 3)
    ['東京都', 'は、日本']
    """
    spans = spaced_spans(text)
    ends = range(0, len(spans), words)
    cut = [spans[i : i + words] for i in ends]
    return [text[part[0][0] : part[-1][1]] for part in cut if len(part) >= min_words]


@dataclass(frozen=True, eq=False)
class _Chunker(Value):
    version: ClassVar[int] = 2

    words: int
    text: str
    min_words: int
    chunk: str
    row_id: str

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        cut = [chunks_of(t, self.words, self.min_words) for t in Batch(batch, "chunk_texts").texts(self.text)]
        out = {name: [v for v, parts in zip(values, cut, strict=True) for _ in parts] for name, values in batch.items()}
        out[self.text] = [part for parts in cut for part in parts]
        out[self.chunk] = [i for parts in cut for i in range(len(parts))]
        if self.row_id in out:
            out[self.row_id] = [f"{r}/{i}" for r, i in zip(out[self.row_id], out[self.chunk], strict=True)]
        return out


def chunk_texts(
    ds: Any,
    words: int = 128,
    text: str = "text",
    *,
    min_words: int = 1,
    chunk: str = "chunk",
    row_id: str = "row_id",
    num_proc: int | None = None,
) -> Any:
    """A dataset of chunks of `words` words each; the other columns are repeated for every chunk of a row.

    Args:
        ds: a `Dataset`, or an `IterableDataset` that knows its columns.
        words: of a chunk, as `chunks_of` counts them; 128 in the paper of DSIR.
        text: column to cut.
        min_words: chunks of fewer words are dropped; `min_words=words` leaves none but whole ones. A text without
            any word has no chunk.
        chunk: int32 column for the number of the chunk in its row, from 0.
        row_id: an id column of that name, if there is one, gets "/" and the number of the chunk behind each id.
        num_proc: processes, for a `Dataset`.

    Raises:
        KeyError: no such column.
        ValueError: `words` below 1, `min_words` out of range, or a column named as `chunk` is there.
        TypeError: a row of `text` is no string.
        ValueError: a text with half of a surrogate pair.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"text": ["one two three", "four"], "label": [0, 1]})
    >>> chunk_texts(ds, words=2)[:]
    {'text': ['one two', 'three', 'four'], 'label': [0, 0, 1], 'chunk': [0, 1, 0]}
    """
    from datasets import Dataset, Features
    from datasets import Value as Scalar

    check_dataset(ds, "chunk_texts", streams=True)
    if not 1 <= min_words <= words:
        raise ValueError(f"words={words}, min_words={min_words}; give 1 <= min_words <= words")
    there = ds.column_names
    if there is None:
        raise ValueError("this stream does not know its columns; give it its features first, as in ds.cast(features)")
    if text not in there:
        raise missing_column(text, there, "chunk_texts")
    if chunk in there:
        raise ValueError(f"there is a column {chunk!r} already; name the number of the chunk otherwise, chunk=...")
    features = Features({**ds.features, chunk: Scalar("int32")}) if ds.features is not None else None
    options: dict[str, Any] = {"num_proc": num_proc} if hasattr(ds, "data") else {}
    cutter = _Chunker(words, text, min_words, chunk, row_id)
    out = ds.with_format(None).map(cutter, batched=True, remove_columns=there, features=features, **options)
    if hasattr(ds, "data"):
        if not len(ds) and features is not None:  # of no rows `map` makes no columns
            out = Dataset.from_dict({name: [] for name in features}, features=features)
        return like_format(out, ds, [chunk])
    return out if ds._formatting is None else out.with_format(ds._formatting.format_type)
