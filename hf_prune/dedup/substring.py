"""Repeated passages: runs of tokens that occur elsewhere, token for token.

Memory of a fit: 21 bytes for each token of the distinct texts, 48 for each token where a repeated run begins, 100
for each distinct text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_count, check_places
from hf_prune.data.batch import Batch
from hf_prune.data.reading import Texts, texts_of
from hf_prune.data.types import OnBad, Rows
from hf_prune.dedup._reading import facts_of, fitted_rows, null_rows
from hf_prune.dedup.corpus import Corpus, tokens_of
from hf_prune.dedup.duplicates import Duplicates
from hf_prune.dedup.passages import Passages, Spans
from hf_prune.dedup.shingles import Unit, check_unit
from hf_prune.scorer import TextScorer


@dataclass(frozen=True, eq=False)
class SubstringDedup(TextScorer):
    """1 - share of the row's tokens that lie in repeated passages. High = nothing repeated = keep.

    With n_i tokens t_i1 ... t_in in row i and L = `min_tokens`,

        score_i = 1 - (1 / n_i) * sum over a of [token a lies in a run of L tokens that occurs elsewhere],

    in another row or again in this one; every occurrence counts, the first too. Runs are found by a rolling hash and
    compared token by token (words by 64-bit hashes of them, token ids by themselves). A text of fewer tokens scores 1,
    copies or not: those are for `ExactDedup`. `RemoveRepeats(scorer)` cuts the passages out of the texts.

    Args:
        passages: what the fit learned: the repeated spans of each text, or the passages of a reference.
        text: column, list of columns (joined by a space), nested path `column.field`, column of chats, or column of
            lists of token ids; "text" by default.
        min_tokens: number of tokens L of the shortest passage that counts, 50 by default.
        unit: what a token is: "token" (words and single signs, the default), "word" (punctuation does not count) or
            "char"; not used for ids.
        lower: whether case does not count; False by default.
        spans: whether to write `<name>_spans`, the repeated tokens as [start, end, start, end, ...]; False by default.
        on_bad: what becomes of a null: "nan" (the default) for NaN, or "raise" an error.
        name: score column, "substring" by default.
        fitted_on: what it was fitted on.

    Raises:
        ValueError: a text that was not there when fitting, unless there is a `reference`; or a null with
            on_bad="raise".

    Reference: Lee et al., 2022, arXiv 2107.06499 (ExactSubstr; there 50 BPE tokens, and a suffix array).

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"text": ["a b c d e f", "x b c d e y", "q r s"]})
    >>> {k: [v.tolist() for v in x] for k, x in SubstringDedup.fit(ds, min_tokens=3, spans=True)(ds[:]).items()}
    {'substring': [0.3333333432674408, 0.3333333432674408, 1.0], 'substring_spans': [[1, 5], [1, 5], []]}
    """

    paper: ClassVar[str] = "Lee et al., Deduplicating Training Data Makes Language Models Better, ACL 2022, 2107.06499"
    meaning: ClassVar[str] = "no passage of it occurs elsewhere"
    raw: ClassVar[str] = "share of tokens in repeated passages; the column is 1 - it. NaN for a null text"
    version: ClassVar[int] = 2

    passages: Spans | Passages
    _: KW_ONLY
    text: str | tuple[str, ...] = "text"
    min_tokens: int = 50
    unit: Unit = "token"
    lower: bool = False
    spans: bool = False
    on_bad: OnBad = "nan"
    name: str = "substring"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        super().check_fields()
        check_count("min_tokens", self.min_tokens)
        check_unit(self.unit)
        known = self.passages
        if isinstance(known, Passages):  # runs are read from their first token without a look
            check_places("Passages.places", known.places + (self.min_tokens - 1), len(known.tokens))

    @classmethod
    def fit(
        cls,
        ds: Rows | None,
        *,
        text: str | Sequence[str] = "text",
        min_tokens: int = 50,
        reference: Any = None,
        unit: Unit = "token",
        lower: bool = False,
        spans: bool = False,
        on_bad: OnBad = "nan",
        name: str = "substring",
    ) -> Self:
        """Find the repeated passages of a dataset; the same for any order of its rows.

        Args:
            ds: `Dataset` or `IterableDataset`, read once. Not read if there is a reference.
            text: column, list of columns, nested path, column of chats, or column of lists of token ids; "text" by
                default.
            min_tokens: number of tokens of the shortest passage that counts, 50 by default.
            reference: dataset whose passages count instead (contamination: an evaluation set); then any text can be
                scored. None by default.
            unit: what a token is: "token" (words and single signs, the default), "word" or "char".
            lower: whether case does not count; False by default.
            spans: whether to write `<name>_spans` too; False by default.
            on_bad: what becomes of a null: "nan" (the default) or "raise".
            name: score column, "substring" by default.

        Returns:
            The scorer of these rows; `summary()` says what was found.

        Raises:
            MissingColumnError: no such column.
            ValueError: an empty dataset, `min_tokens` below 1, an unknown unit; a null with on_bad="raise".

        >>> from datasets import Dataset
        >>> ds = Dataset.from_dict({"text": ["a b c d", "x a b c"]})
        >>> SubstringDedup.fit(ds, min_tokens=3).fitted_on["repeated_tokens"]
        6
        """
        check_count("min_tokens", min_tokens)
        check_unit(unit)
        corpus = Corpus.of(ds if reference is None else reference, text, unit, lower, cls.__name__)
        policy = on_bad if reference is None else "nan"
        facts = facts_of(corpus.digests, corpus.copies, corpus.nulls, text, cls.__name__, policy)
        facts["tokens"] = len(corpus.tokens)
        passages: Spans | Passages
        if reference is not None:
            passages = Passages.of(Corpus.merge([corpus]), min_tokens)
            facts["compared_with"] = "reference"
        else:
            passages = Spans.of(corpus.digests, corpus.starts, corpus.ends, corpus.marks(min_tokens))
            facts["repeated_tokens"] = int(passages.repeated.sum())
        return cls(
            passages=passages,
            text=text if isinstance(text, str) else tuple(text),
            min_tokens=min_tokens,
            unit=unit,
            lower=lower,
            spans=spans,
            on_bad=on_bad,
            name=name,
            fitted_on=facts,
        )

    def columns(self) -> dict[str, str]:
        return {self.name: "float32"} | ({f"{self.name}_spans": "int32[]"} if self.spans else {})

    def companions(self) -> dict[str, str]:
        line = "repeated tokens as [start, end, start, end, ...], ends not included"
        return {f"{self.name}_spans": line} if self.spans else {}

    def score(self, batch: Batch, rank: int | None) -> Any:
        texts = texts_of(batch, self.text, ids=True)
        self.check_bad(null_rows(texts))
        spans, at = self.locate(batch, texts)
        repeated, total = spans.repeated[at], spans.tokens[at]
        score = np.where(texts.null, np.nan, 1 - repeated / np.maximum(total, 1))
        if not self.spans:
            return {self.name: score}
        listed = [[] if null else spans.of_text(int(i)) for i, null in zip(at, texts.null, strict=True)]
        return {self.name: score, f"{self.name}_spans": [np.array(x, np.int32).reshape(-1) for x in listed]}

    def locate(self, batch: Batch, texts: Texts) -> tuple[Spans, NDArray[np.int64]]:
        """Repeated spans, and the index in them of each row of a batch, -1 for null; `texts` are the batch's."""
        if isinstance(self.passages, Spans):
            return self.passages, fitted_rows(batch, texts, self.passages.keys, self.text)
        every = np.arange(batch.n)
        tokens = tokens_of(texts, every, self.unit, self.lower)
        marks = self.passages.marks(tokens, self.min_tokens)
        return Spans.of(every.astype(np.uint64), tokens.starts, tokens.ends, marks), every

    def summary(self) -> Duplicates:
        """What the fit found: rows, tokens, and how many of them are repeated.

        >>> from datasets import Dataset
        >>> SubstringDedup.fit(Dataset.from_dict({"text": ["a b c d", "x a b c"]}), min_tokens=3).summary()
        Duplicates
          rows             2
          texts            2
          tokens           8
          repeated tokens  6
        """
        return Duplicates.of(self.fitted_on)
