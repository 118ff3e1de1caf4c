"""Repeated passages of each text, and texts whose passages count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_parallel, check_places
from hf_prune.dedup.corpus import Corpus, owners_of, ranks, windows
from hf_prune.dedup.shingles import Ragged
from hf_prune.values import Value

Keep: TypeAlias = Literal["one", "none"]


@dataclass(frozen=True, eq=False)
class Spans(Value):
    """Repeated spans of each distinct text, in the order of their digests.

    Args:
        keys: (m,) digests, ascending.
        tokens: (m,) number of tokens of the text.
        repeated: (m,) number of them that are repeated.
        offsets: (m + 1,) where a text's pieces of spans begin.
        starts: (p,) first token of each piece, in its text.
        ends: (p,) token behind the last of each piece.
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
    def of(
        cls,
        keys: NDArray[np.uint64],
        text_starts: NDArray[np.int64],
        text_ends: NDArray[np.int64],
        marks: NDArray[np.uint8],
    ) -> Spans:
        """Cut the marks of tokens into pieces of equal marks.

        Args:
            keys: (m,) digests of the texts, in any order.
            text_starts: (m,) where the tokens of each begin.
            text_ends: (m,) where they end.
            marks: (t,) as `Corpus.marks` gives them.
        """
        order, rank = np.argsort(keys), ranks(keys)
        some = np.flatnonzero(marks)
        owner = owners_of(some, text_starts, text_ends)
        new = np.ones(len(some), bool)
        new[1:] = (np.diff(some) > 1) | (np.diff(owner) != 0) | (marks[some[1:]] != marks[some[:-1]])
        head = np.flatnonzero(new)
        last = np.append(head[1:], len(some))[: len(head)] - 1
        whose = owner[head]
        sort = np.lexsort((some[head], rank[whose]))
        head, last, whose = head[sort], last[sort], whose[sort]
        counts = np.bincount(rank[whose], minlength=len(keys))
        return cls(
            keys=keys[order],
            tokens=(text_ends - text_starts)[order].astype(np.int32),
            repeated=np.bincount(rank[whose], last - head + 1, len(keys)).astype(np.int32),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            starts=(some[head] - text_starts[whose]).astype(np.int32),
            ends=(some[last] + 1 - text_starts[whose]).astype(np.int32),
            first=(marks[some[head]] >> 1).astype(np.uint8),
        )

    def of_text(self, at: int, keep: Keep = "none") -> list[tuple[int, int]]:
        """Maximal spans [start, end) of one text; with keep="one" without what occurs here first."""
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
    """A fixed set of texts to compare others with.

    Args:
        tokens: (t,) hashed tokens of the texts, text after text.
        hashes: (r,) hashes of their runs, ascending.
        places: (r,) index of each run's first token.
    """

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
        return cls(tokens=corpus.tokens, hashes=hashes[order], places=order)

    def marks(self, texts: Ragged, length: int) -> NDArray[np.uint8]:
        """For each token of some texts 1 if it lies in a run of `length` that occurs here."""
        from hf_prune.dedup import _substring_kernels as kernels
        from hf_prune.numerics.compiled import read_only

        starts, ends, tokens = texts
        marks = np.zeros(len(tokens), np.uint8)
        hashes = windows(tokens, starts, ends, length)
        known, places, others = (read_only(array) for array in (self.hashes, self.places, self.tokens))
        kernels.confirm_in(hashes, tokens, starts, ends, known, places, others, length, marks)
        kernels.cover(marks, starts, ends, length)
        return marks
