"""Repeated passages: runs of tokens that occur elsewhere, word for word.

Memory of a fit: 21 bytes for each token of the distinct texts, 48 for each place where a repeated run begins, 100
for each distinct text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_prune.checks import check_parallel, check_places
from hf_prune.data import identity
from hf_prune.data.batch import Batch
from hf_prune.data.formats import as_table, is_table, with_columns
from hf_prune.data.reading import Texts, text_blocks, texts_of
from hf_prune.data.texts import columns_of, read_column
from hf_prune.data.words import UNITS, character_table, graphemes, tokens
from hf_prune.dedup._reading import facts_of, fitted_rows
from hf_prune.dedup.shingles import buffers, check_grams, pieces
from hf_prune.scorer import Scorer
from hf_prune.values import Value

KEEP = ("one", "none")
_NEAR = 256  # characters that are looked at on each side of a cut
_SPACES = re.compile(r"\s+")


def repeated_spans(texts: Sequence[Sequence[Any]], min_tokens: int) -> list[list[tuple[int, int]]]:
    """Maximal spans [start, end) of each text made of runs of `min_tokens` tokens that occur twice or more.

    In plain Python: the definition.

    >>> repeated_spans(["a b c d e f".split(), "x b c d e y".split(), "q r s".split()], 3)
    [[(1, 5)], [(1, 5)], []]
    """
    count: dict[tuple[Any, ...], int] = {}
    runs = [[tuple(t[i : i + min_tokens]) for i in range(len(t) - min_tokens + 1)] for t in texts]
    for run in (run for text in runs for run in text):
        count[run] = count.get(run, 0) + 1
    out = []
    for text in runs:
        spans: list[tuple[int, int]] = []
        for at, run in enumerate(text):
            if count[run] > 1:
                joined = bool(spans) and at <= spans[-1][1]
                spans[-1:] = [(spans[-1][0], at + min_tokens)] if joined else [*spans[-1:], (at, at + min_tokens)]
        out.append(spans)
    return out


class Corpus(NamedTuple):
    """Hashed tokens of distinct texts, mergeable over shards: text i is tokens[starts[i]:ends[i]].

    Attributes:
        digests, copies: (m,) of the texts, and how many rows have them.
    """

    digests: NDArray[np.uint64]
    copies: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    tokens: NDArray[np.uint64]
    nulls: int = 0

    @classmethod
    def of(cls, ds: Any, text: str | Sequence[str], unit: str, lower: bool, who: str) -> Corpus:
        """Read a dataset or a shard of one; of copies only the first is tokenised."""
        known: dict[int, int] = {}
        copies: list[int] = []
        starts, ends, tokens = [], [], []
        total = nulls = 0
        for block in text_blocks(ds, text, f"{who}.fit", ids=True):
            chosen = []
            for row, (digest, null) in enumerate(zip(block.digests.tolist(), block.null.tolist(), strict=True)):
                if null:
                    nulls += 1
                elif (at := known.setdefault(digest, len(copies))) < len(copies):
                    copies[at] += 1
                else:
                    copies.append(1)
                    chosen.append(row)
            first, last, found = tokens_of(block, np.array(chosen, np.int64), unit, lower)
            starts.append(first + total)
            ends.append(last + total)
            tokens.append(found)
            total += len(found)
        digests = np.fromiter(known, np.uint64, len(known))
        places = np.concatenate(starts), np.concatenate(ends)
        return cls(digests, np.array(copies, np.int64), *places, np.concatenate(tokens), nulls)

    @classmethod
    def merge(cls, parts: Sequence[Corpus]) -> Corpus:
        """Put shards together; their order does not matter to what is found."""
        digests = np.concatenate([p.digests for p in parts])
        known, first, which = np.unique(digests, return_index=True, return_inverse=True)
        shift = np.repeat(np.cumsum([0] + [len(p.tokens) for p in parts[:-1]]), [len(p.digests) for p in parts])
        starts, ends = (np.concatenate([getattr(p, name) for p in parts]) + shift for name in ("starts", "ends"))
        copies = np.bincount(which, np.concatenate([p.copies for p in parts]), len(known)).astype(np.int64)
        tokens = np.concatenate([p.tokens for p in parts])
        return cls(known, copies, starts[first], ends[first], tokens, sum(p.nulls for p in parts))

    def windows(self, length: int) -> NDArray[np.uint64]:
        """Hash of the `length` tokens from each place on."""
        return _windows(self.tokens, self.starts, self.ends, length)

    def marks(self, length: int) -> NDArray[np.uint8]:
        """For each token 1 if it lies in a repeated run, and 2 more if that run's first occurrence is here.

        First is the one in the text with the lowest digest, so that the order of rows does not matter.
        """
        from hf_prune.dedup import _kernels

        hashes = self.windows(length)
        bits = max(10, int(4 * len(hashes)).bit_length())
        places = _kernels.survivors(hashes, self.starts, self.ends, self.copies, length, bits)
        places = places[np.argsort(hashes[places], kind="stable")]
        by_start = np.argsort(self.starts, kind="stable")
        # texts without tokens share their start with the next one, and are not meant
        by_start = by_start[self.ends[by_start] > self.starts[by_start]]
        texts = by_start[np.searchsorted(self.starts[by_start], places, "right") - 1] if len(places) else places
        rank = np.empty(len(self.digests), np.int64)
        rank[np.argsort(self.digests)] = np.arange(len(rank))
        marks = np.zeros(len(self.tokens), np.uint8)
        _kernels.confirm(places, texts, hashes, self.tokens, self.copies, rank, length, marks)
        _kernels.cover(marks, self.starts, self.ends, length)
        return marks


def tokens_of(
    texts: Texts, chosen: NDArray[np.int64], unit: str, lower: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
    """Hashed tokens of some rows, one after the other, and where each row's begin and end."""
    from hf_prune.dedup import _kernels
    from hf_prune.numerics.compiled import in_threads

    if not (pa.types.is_string(texts.array.type) or pa.types.is_large_string(texts.array.type)):
        array = texts.array.take(pa.array(chosen))
        ends = np.cumsum(np.diff(array.offsets.to_numpy()))
        ids = array.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
        return ends - np.diff(array.offsets.to_numpy()), ends, identity.seeded(ids.view(np.uint64), 0)
    data, offsets = buffers(texts.array)
    sizes, ends = offsets[chosen + 1] - offsets[chosen], np.zeros(len(chosen), np.int64)
    ranges, table, which = pieces(sizes), character_table(), UNITS.index(unit)

    def run(piece: tuple[int, int]) -> NDArray[np.uint64]:
        low, high = piece
        out = np.empty(int(sizes[low:high].sum()) + 1, np.uint64)
        filled = _kernels.token_hashes(data, offsets, chosen, low, high, table, which, lower, ends, out)
        return out[:filled].copy()

    parts = in_threads(run, ranges)
    total = 0
    for (low, high), part in zip(ranges, parts, strict=True):
        ends[low:high] += total
        total += len(part)
    starts = np.concatenate([np.zeros(min(1, len(ends)), np.int64), ends[:-1]])
    return starts, ends, np.concatenate([np.empty(0, np.uint64), *parts])


def _windows(
    tokens: NDArray[np.uint64], starts: NDArray[np.int64], ends: NDArray[np.int64], length: int
) -> NDArray[np.uint64]:
    from hf_prune.dedup import _kernels

    out = np.empty(len(tokens), np.uint64)
    _kernels.windows(tokens, starts, ends, length, out)
    return out


@dataclass(frozen=True, eq=False)
class Spans(Value):
    """Repeated spans of each distinct text, in the order of their digests.

    Args:
        keys: (m,) digests.
        tokens, repeated: (m,) tokens of the text, and how many of them are repeated.
        offsets: (m + 1,) where a text's pieces of spans begin.
        starts, ends: (p,) tokens [start, end) of the pieces.
        first: (p,) 1 where the piece holds the first occurrence of what is repeated, else 0.
    """

    keys: np.ndarray
    tokens: np.ndarray
    repeated: np.ndarray
    offsets: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    first: np.ndarray

    def check_fields(self) -> None:
        check_parallel("Spans", keys=self.keys, tokens=self.tokens, repeated=self.repeated)
        check_parallel("Spans", starts=self.starts, ends=self.ends, first=self.first)
        if np.shape(self.offsets) != (len(self.keys) + 1,):
            raise ValueError(f"Spans: offsets of shape {np.shape(self.offsets)} for {len(self.keys)} texts")
        check_places("Spans.offsets", self.offsets, len(self.starts) + 1)

    @classmethod
    def of(cls, keys: Any, text_starts: Any, text_ends: Any, marks: NDArray[np.uint8]) -> Spans:
        """Cut the marks of the tokens into pieces of equal marks; `keys` (m,) in any order."""
        order = np.argsort(keys)
        some = np.flatnonzero(marks)
        owner_order = np.argsort(text_starts, kind="stable")
        owner_order = owner_order[text_ends[owner_order] > text_starts[owner_order]]
        owner = owner_order[np.searchsorted(text_starts[owner_order], some, "right") - 1] if len(some) else some
        new = np.ones(len(some), bool)
        new[1:] = (np.diff(some) > 1) | (np.diff(owner) != 0) | (marks[some[1:]] != marks[some[:-1]])
        head = np.flatnonzero(new)
        last = np.append(head[1:], len(some))[: len(head)] - 1
        whose = owner[head]
        rank = np.empty(len(keys), np.int64)
        rank[order] = np.arange(len(order))
        sort = np.lexsort((some[head], rank[whose]))
        head, last, whose = head[sort], last[sort], whose[sort]
        counts = np.bincount(rank[whose], minlength=len(keys))
        repeated = np.bincount(rank[whose], last - head + 1, len(keys))
        return cls(
            keys[order],
            (text_ends - text_starts)[order].astype(np.int32),
            repeated.astype(np.int32),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            (some[head] - text_starts[whose]).astype(np.int32),
            (some[last] + 1 - text_starts[whose]).astype(np.int32),
            (marks[some[head]] >> 1).astype(np.uint8),
        )

    def of_text(self, at: int, keep: str = "none") -> list[tuple[int, int]]:
        """Maximal spans of one text; with keep="one" without what occurs here first."""
        spans: list[tuple[int, int]] = []
        for i in range(self.offsets[at], self.offsets[at + 1]):
            start, end = int(self.starts[i]), int(self.ends[i])
            if keep == "one" and self.first[i]:
                continue
            if spans and spans[-1][1] == start:
                spans[-1] = spans[-1][0], end
            else:
                spans.append((start, end))
        return spans


@dataclass(frozen=True, eq=False)
class Passages(Value):
    """A fixed set of texts to compare with: hashed tokens, and the hashes of their runs in ascending order."""

    tokens: NDArray[np.uint64]
    hashes: NDArray[np.uint64]
    places: NDArray[np.int64]

    def check_fields(self) -> None:
        check_parallel("Passages", hashes=self.hashes, places=self.places)
        check_places("Passages.places", self.places, len(self.tokens))

    @classmethod
    def of(cls, corpus: Corpus, length: int) -> Passages:
        """Index the runs of `length` tokens."""
        hashes = corpus.windows(length)
        fits = np.zeros(len(hashes) + 1, np.int64)
        long = corpus.ends - corpus.starts >= length
        np.add.at(fits, corpus.starts[long], 1)
        np.add.at(fits, corpus.ends[long] - length + 1, -1)
        places = np.flatnonzero(np.cumsum(fits)[:-1] > 0)
        order = places[np.argsort(hashes[places], kind="stable")]
        return cls(corpus.tokens, hashes[order], order)

    def marks(self, starts: Any, ends: Any, tokens: NDArray[np.uint64], length: int) -> NDArray[np.uint8]:
        """For each token of some texts 1 if it lies in a run that occurs here."""
        from hf_prune.dedup import _kernels

        marks = np.zeros(len(tokens), np.uint8)
        hashes = _windows(tokens, starts, ends, length)
        _kernels.confirm_in(hashes, tokens, starts, ends, self.hashes, self.places, self.tokens, length, marks)
        _kernels.cover(marks, starts, ends, length)
        return marks


@dataclass(frozen=True, eq=False)
class SubstringDedup(Scorer):
    """1 - share of the row's tokens that lie in repeated passages. High = nothing repeated = keep.

    A passage is repeated if its `min_tokens` tokens occur elsewhere, in another row or again in this one; every
    occurrence counts, the first too. Runs are found by a rolling hash and compared token by token (words by
    64-bit hashes of them, token ids by themselves). A text of fewer tokens scores 1, copies or not: those are for
    `ExactDedup`.

    Args:
        found: what the fit learned.
        text: column, columns (joined by a space), nested path, chat column, or a column of lists of token ids.
        min_tokens: length of the shortest passage that counts.
        unit: "token" (words and single signs), "word" (punctuation does not count) or "char"; not used for ids.
        lower: compare in lower case.
        spans: write `<name>_spans`, the repeated tokens as [start, end, start, end, ...].
        name: score column.
        fitted_on: what it was fitted on.

    A null scores NaN. `RemoveRepeats(scorer)` cuts the passages out of the texts.

    Raises:
        ValueError: a text that was not there when fitting, unless there is a `reference`.

    Reference: Lee et al., 2022, arXiv 2107.06499 (ExactSubstr; there 50 BPE tokens, and a suffix array).

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"text": ["a b c d e f", "x b c d e y", "q r s"]})
    >>> {k: [v.tolist() for v in x] for k, x in SubstringDedup.fit(ds, min_tokens=3, spans=True)(ds[:]).items()}
    {'substring': [0.3333333432674408, 0.3333333432674408, 1.0], 'substring_spans': [[1, 5], [1, 5], []]}
    """

    paper: ClassVar[str] = "Lee et al., Deduplicating Training Data Makes Language Models Better, ACL 2022, 2107.06499"
    meaning: ClassVar[str] = "no passage of it occurs elsewhere"
    raw: ClassVar[str] = "share of tokens in repeated passages; the column is 1 - it. NaN for a null text"
    nan_rows: ClassVar[bool] = True
    version: ClassVar[int] = 2

    found: Spans | Passages
    text: str | tuple[str, ...] = "text"
    min_tokens: int = 50
    unit: str = "token"
    lower: bool = False
    spans: bool = False
    name: str = "substring"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        columns_of(self.text)
        check_min_tokens(self.min_tokens)
        check_grams(1, self.unit)
        if isinstance(self.found, Passages):  # runs are read from their first token without a look
            check_places("Passages.places", self.found.places + (self.min_tokens - 1), len(self.found.tokens))

    @classmethod
    def fit(
        cls,
        ds: Any,
        text: str | Sequence[str] = "text",
        min_tokens: int = 50,
        *,
        reference: Any = None,
        unit: str = "token",
        lower: bool = False,
        spans: bool = False,
        name: str = "substring",
    ) -> Self:
        """Find the repeated passages of a dataset; the same for any order of its rows.

        Args:
            ds: `Dataset` or `IterableDataset`, read once. Not read if there is a reference.
            text, min_tokens, unit, lower, spans, name: of the scorer.
            reference: dataset whose passages count instead (contamination: an evaluation set); then any text can be
                scored.

        Raises:
            ValueError: an empty dataset, or min_tokens below 1.
        """
        check_min_tokens(min_tokens)
        check_grams(1, unit)
        corpus = Corpus.of(ds if reference is None else reference, text, unit, lower, cls.__name__)
        found: Spans | Passages
        facts = facts_of(corpus.digests, corpus.copies, corpus.nulls, text)
        facts["tokens"] = len(corpus.tokens)
        if reference is not None:
            found = Passages.of(Corpus.merge([corpus]), min_tokens)
            facts["compared_with"] = "reference"
        else:
            found = Spans.of(corpus.digests, corpus.starts, corpus.ends, corpus.marks(min_tokens))
            facts["repeated_tokens"] = int(found.repeated.sum())
        column = text if isinstance(text, str) else tuple(text)
        return cls(found, column, min_tokens, unit, lower, spans, name, facts)

    def columns(self) -> dict[str, str]:
        return {self.name: "float32"} | ({f"{self.name}_spans": "int32[]"} if self.spans else {})

    def companions(self) -> dict[str, str]:
        line = "repeated tokens as [start, end, start, end, ...], ends not included"
        return {f"{self.name}_spans": line} if self.spans else {}

    def score(self, batch: Batch, rank: int | None) -> Any:
        texts = texts_of(batch, self.text, ids=True)
        spans, at = self.locate(batch, texts)
        repeated, total = spans.repeated[at], spans.tokens[at]
        score = np.where(texts.null, np.nan, 1 - repeated / np.maximum(total, 1))
        if not self.spans:
            return {self.name: score}
        listed = [[] if null else spans.of_text(int(i)) for i, null in zip(at, texts.null, strict=True)]
        return {self.name: score, f"{self.name}_spans": [np.array(x, np.int32).reshape(-1) for x in listed]}

    def locate(self, batch: Batch, texts: Texts) -> tuple[Spans, NDArray[np.int64]]:
        """Spans, and the place in them of each row of a batch."""
        if isinstance(self.found, Spans):
            return self.found, fitted_rows(batch, texts, self.found.keys, self.text)
        starts, ends, tokens = tokens_of(texts, np.arange(batch.n), self.unit, self.lower)
        marks = self.found.marks(starts, ends, tokens, self.min_tokens)
        return Spans.of(np.arange(batch.n, dtype=np.uint64), starts, ends, marks), np.arange(batch.n)


@dataclass(frozen=True, eq=False)
class RemoveRepeats(Value):
    """Callable for `Dataset.map(..., batched=True)` that cuts the repeated passages out of a text column.

    A cut begins with the first repeated token and ends where the next token that stays begins; never in a word, nor in
    what a reader sees as one character. The tokens that stay are those that were there: white space stays between them
    where there was some, and words do not run together. Sentences may be left broken: what is cut was repeated, not
    whole.

    Args:
        scorer: a fitted `SubstringDedup` of one column.
        keep: "one" leaves the first occurrence of every passage where it is, the one in the text with the lowest
            digest (its exact copies keep it as well); "none" cuts all occurrences. Against a reference both cut all.

    Raises:
        ValueError: another `keep`, or a scorer of several columns.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"text": ["a b c d e f", "x b c d e y", "q r s"]})
    >>> RemoveRepeats(SubstringDedup.fit(ds, min_tokens=3), keep="none")(ds[:])
    {'text': ['a f', 'x y', 'q r s']}
    """

    version: ClassVar[int] = 2

    scorer: SubstringDedup
    keep: str = "one"

    def check_fields(self) -> None:
        if self.keep not in KEEP:
            raise ValueError(f"keep={self.keep!r} is not known; choose 'one' or 'none'")
        if len(columns_of(self.scorer.text)) != 1 or "." in columns_of(self.scorer.text)[0]:
            raise ValueError(
                f"passages are cut out of one plain column, not of {self.scorer.text!r}; fit on one column"
            )

    def __call__(self, batch: Any, rank: int | None = None) -> Any:
        """Edit a batch as `map` hands it over.

        Raises:
            TypeError: a column of chats.

        Returns:
            The column with shorter texts (or lists of ids); nulls stay. Of a table or a data frame the whole table.
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
        text: to edit.
        cut: ascending stretches [start, end). Each is shortened to the boundaries within it.
        boundaries: ascending positions where a text may be cut.

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


def _token_starts(text: str, unit: str) -> NDArray[np.int64]:
    """Position at which each token begins, and the end of the text."""
    from hf_prune.dedup import _kernels

    data = np.frombuffer(text.encode(), np.uint8)
    hashes, starts = np.empty(len(data) + 1, np.uint64), np.empty(len(data) + 1, np.int32)
    count = _kernels.tokenize(data, 0, len(data), character_table(), UNITS.index(unit), False, hashes, starts)
    places = np.append(np.cumsum(data & 0xC0 != 0x80) - 1, len(text))  # of each byte's character
    return np.asarray(places[np.append(starts[:count], len(data))])


def _boundaries(text: str, edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the places where tokens begin that lie neither in a word nor in what a reader sees as one character."""
    words = _token_starts(text, "token")
    if len(edges) > len(words):  # tokens are characters
        white = [i for i, c in enumerate(text) if c.isspace()]
        edges = np.union1d(words, white)
    return edges if text.isascii() and "\r\n" not in text else np.intersect1d(edges, graphemes(text))


def check_min_tokens(min_tokens: Any) -> None:
    """Raise a ValueError unless the length of a passage is an integer of 1 or more."""
    if isinstance(min_tokens, bool) or not isinstance(min_tokens, int) or min_tokens < 1:
        raise ValueError(f"min_tokens={min_tokens!r} is no length of a passage; give an integer such as 50")
