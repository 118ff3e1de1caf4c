"""The hashed tokens of a dataset's distinct texts, and which of them lie in repeated runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_prune.data import identity
from hf_prune.data.reading import Texts, text_blocks
from hf_prune.dedup.shingles import Ragged, Unit, token_hashes


class Corpus(NamedTuple):
    """Hashed tokens of distinct texts, mergeable over shards: text i is tokens[starts[i]:ends[i]].

    Attributes:
        digests: (m,) digests of the texts.
        copies: (m,) number of rows that have the text.
        starts: (m,) where its tokens begin.
        ends: (m,) where they end.
        tokens: (t,) hashes of tokens.
        nulls: number of rows without a text.
    """

    digests: NDArray[np.uint64]
    copies: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    tokens: NDArray[np.uint64]
    nulls: int = 0

    @classmethod
    def of(cls, ds: Any, text: str | Sequence[str], unit: Unit, lower: bool, who: str) -> Corpus:
        """Read a dataset or a shard of one; of copies only the first is cut into tokens."""
        known: dict[int, int] = {}
        copies: list[int] = []
        parts: list[Ragged] = []
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
            part = tokens_of(block, np.array(chosen, np.int64), unit, lower)
            parts.append(part._replace(starts=part.starts + total, ends=part.ends + total))
            total += len(part.values)
        return cls(
            digests=np.fromiter(known, np.uint64, len(known)),
            copies=np.array(copies, np.int64),
            starts=np.concatenate([p.starts for p in parts]),
            ends=np.concatenate([p.ends for p in parts]),
            tokens=np.concatenate([p.values for p in parts]),
            nulls=nulls,
        )

    @classmethod
    def merge(cls, parts: Sequence[Corpus]) -> Corpus:
        """Put shards together; their order does not matter to what is found."""
        digests = np.concatenate([p.digests for p in parts])
        known, first, which = np.unique(digests, return_index=True, return_inverse=True)
        shift = np.repeat(np.cumsum([0] + [len(p.tokens) for p in parts[:-1]]), [len(p.digests) for p in parts])
        return cls(
            digests=known,
            copies=np.bincount(which, np.concatenate([p.copies for p in parts]), len(known)).astype(np.int64),
            starts=(np.concatenate([p.starts for p in parts]) + shift)[first],
            ends=(np.concatenate([p.ends for p in parts]) + shift)[first],
            tokens=np.concatenate([p.tokens for p in parts]),
            nulls=sum(p.nulls for p in parts),
        )

    def windows(self, length: int) -> NDArray[np.uint64]:
        """Hash (t,) of the `length` tokens from each on; 0 where the text ends before."""
        return windows(self.tokens, self.starts, self.ends, length)

    def marks(self, length: int) -> NDArray[np.uint8]:
        """For each token (t,) 1 if it lies in a repeated run of `length`, and 2 more if its first occurrence is here.

        First is the one in the text with the lowest digest, so that the order of rows does not matter.
        """
        from hf_prune.dedup import _substring_kernels as kernels

        hashes = self.windows(length)
        bits = max(10, int(4 * len(hashes)).bit_length())
        runs = kernels.survivors(hashes, self.starts, self.ends, self.copies, length, bits)
        runs = runs[np.argsort(hashes[runs], kind="stable")]
        marks = np.zeros(len(self.tokens), np.uint8)
        owners = owners_of(runs, self.starts, self.ends)
        rank = ranks(self.digests)
        kernels.confirm(runs, owners, hashes, self.tokens, self.copies, rank, length, marks)
        kernels.cover(marks, self.starts, self.ends, length)
        return marks


def tokens_of(texts: Texts, chosen: NDArray[np.int64], unit: Unit, lower: bool) -> Ragged:
    """Hashed tokens of some rows: of their texts, or token ids as they are.

    Args:
        texts: rows of a dataset.
        chosen: (k,) which of them.
        unit: what a token of a text is.
        lower: whether case does not count.
    """
    if pa.types.is_string(texts.array.type) or pa.types.is_large_string(texts.array.type):
        return token_hashes(texts.array, chosen, unit, lower)
    array = texts.array.take(pa.array(chosen))
    sizes = np.diff(array.offsets.to_numpy())
    ends = np.cumsum(sizes)
    ids = array.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    return Ragged(ends - sizes, ends, identity.seeded(ids.view(np.uint64), 0))


def windows(
    tokens: NDArray[np.uint64], starts: NDArray[np.int64], ends: NDArray[np.int64], length: int
) -> NDArray[np.uint64]:
    """Hash (t,) of the `length` tokens from each of the tokens (t,) of some texts on; 0 where the text ends before."""
    from hf_prune.dedup import _substring_kernels as kernels

    out = np.empty(len(tokens), np.uint64)
    kernels.windows(tokens, starts, ends, length, out)
    return out


def owners_of(at: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of the text that each of some tokens (k,) belongs to; texts are (m,) starts and ends.

    >>> owners_of(np.array([0, 4, 5]), np.array([5, 5, 0]), np.array([6, 5, 5])).tolist()
    [2, 2, 0]
    """
    order = np.argsort(starts, kind="stable")
    order = order[ends[order] > starts[order]]  # texts without tokens share their start with the next one
    return order[np.searchsorted(starts[order], at, "right") - 1] if len(at) else at


def ranks(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Rank (m,) of each of the keys in ascending order, from 0."""
    rank = np.empty(len(keys), np.int64)
    rank[np.argsort(keys)] = np.arange(len(keys))
    return rank
