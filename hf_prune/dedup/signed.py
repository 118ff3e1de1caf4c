"""What a pass over a dataset learns for MinHash: keys of bands, and sets of n-grams of those that need them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_prune.data.lookup import find
from hf_prune.data.reading import text_blocks
from hf_prune.dedup import crowds
from hf_prune.dedup._reading import emptied
from hf_prune.dedup.bands import permutations
from hf_prune.dedup.shingles import Sets, similarities

if TYPE_CHECKING:
    from hf_prune.dedup.minhash import Sketch


class Signed(NamedTuple):
    """What one pass learns, mergeable: distinct texts in the order of their digests.

    Attributes:
        digests: (m,) of the texts.
        copies: (m,) rows that have the text.
        sizes: (m,) n-grams, repeats counted.
        keys: (m, bands).
        signatures: (m, bands * rows), or none.
        nulls: rows without a text.
    """

    digests: NDArray[np.uint64]
    copies: NDArray[np.int64]
    sizes: NDArray[np.int64]
    keys: NDArray[np.uint64]
    signatures: NDArray[np.uint32]
    nulls: int

    @classmethod
    def of(cls, ds: Any, text: str | Sequence[str], sketch: Sketch, who: str, signatures: bool = False) -> Signed:
        """Read a dataset or a shard of one."""
        parts = []
        for block in text_blocks(ds, text, f"{who}.fit"):
            keys, sizes, minima = sketch.sign(block.array, signatures)
            some = ~block.null
            part = (block.digests, np.ones(len(sizes), np.int64), sizes, keys, minima)
            if block.null.any():
                part = tuple(p[some] if len(p) == len(some) else p for p in part)  # type: ignore[assignment]
            parts.append(cls(*part, int(block.null.sum())))
        return cls.merge(parts)

    @classmethod
    def merge(cls, parts: Sequence[Signed]) -> Signed:
        """Put shards together; their order does not matter.

        Raises:
            ValueError: two different texts with one digest, which takes thousands of millions of them.
        """
        digests = np.concatenate([p.digests for p in parts])
        known, which = np.unique(digests, return_inverse=True)
        whose = np.split(which, np.cumsum([len(p.digests) for p in parts])[:-1])

        def gathered(name: str) -> NDArray[Any]:
            """One row a text, without a copy of all parts in between."""
            values = [getattr(p, name) for p in parts]
            if not any(len(v) for v in values):
                return values[0]  # type: ignore[no-any-return]
            out = np.empty((len(known), *values[0].shape[1:]), values[0].dtype)
            for at, part in zip(whose, values, strict=True):
                out[at] = part
            if any((out[at] != part).any() for at, part in zip(whose, values, strict=True)):
                raise ValueError("two different texts have the same 64-bit digest; compare the dataset in two parts")
            return out

        copies = np.bincount(which, np.concatenate([p.copies for p in parts]), len(known)).astype(np.int64)
        kept = (gathered(name) for name in ("sizes", "keys", "signatures"))
        return cls(known, copies, *kept, sum(p.nulls for p in parts))  # type: ignore[arg-type, call-arg]

    def runs(self) -> Iterator[NDArray[np.int64]]:
        """For each band, the texts that share its key with another, those with equal keys side by side."""
        some = np.flatnonzero(self.sizes)
        for band in range(self.keys.shape[1]):
            keys = np.ascontiguousarray(self.keys[some, band])
            order = np.argsort(keys)
            keys = keys[order]
            same = keys[1:] == keys[:-1]
            yield some[order[np.append(same, False) | np.insert(same, 0, False)]] if len(keys) else some


def sets_of(ds: Any, text: str | Sequence[str], sketch: Sketch, who: str, wanted: NDArray[np.uint64]) -> Sets:
    """Sets of hashed n-grams of the texts with the digests `wanted` (w,), ascending: a second pass.

    Raises:
        ValueError: the dataset is not what it was in the first pass.
    """
    starts, ends = np.full(len(wanted), -1, np.int64), np.zeros(len(wanted), np.int64)
    parts: list[NDArray[np.uint64]] = []
    total = 0
    for block in text_blocks(ds, text, f"{who}.fit") if len(wanted) else ():
        at = find(wanted, block.digests)
        at[block.null] = -1
        _, first = np.unique(at, return_index=True)
        first = first[at[first] >= 0]
        first = first[starts[at[first]] < 0]
        found = sketch.sets(block.array, first)
        starts[at[first]], ends[at[first]] = found.starts + total, found.ends + total
        parts.append(found.values)
        total += len(found.values)
    if (starts < 0).any():
        raise ValueError(
            f"{who}.fit reads the texts twice, and {int((starts < 0).sum())} were not there the second time; give a "
            "dataset that can be read again, or verify=False, which reads once"
        )
    return Sets(starts, ends, emptied(parts))


class Verified(NamedTuple):
    """True similarities, from the n-gram sets of the texts that share a band."""

    sets: Sets
    sketch: Sketch

    @classmethod
    def of(cls, ds: Any, text: str | Sequence[str], sketch: Sketch, who: str, signed: Signed) -> Verified:
        """Read the texts a second time."""
        shared = np.zeros(len(signed.digests), bool)
        for order in signed.runs():
            shared[order] = True
        where = np.flatnonzero(shared)
        read = sets_of(ds, text, sketch, who, signed.digests[where])
        starts, ends = np.zeros(len(shared), np.int64), np.zeros(len(shared), np.int64)
        starts[where], ends[where] = read.starts, read.ends
        return cls(Sets(starts, ends, read.values), sketch)

    def similarity(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """Jaccard similarities (p,) of pairs of texts."""
        return similarities(left, right, self.sets, self.sets)

    def minima(self, chosen: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Minima (k, n) of some texts, under permutations that are not those of the bands."""
        from hf_prune.dedup import _crowd_kernels
        from hf_prune.numerics.compiled import in_threads

        a, b = permutations(crowds.MINIMA, self.sketch.seed, 2 * self.sketch.bands * self.sketch.rows)
        out, step = np.empty((len(a), len(chosen)), np.uint32), 1 << 10
        in_threads(
            lambda low: _crowd_kernels.set_minima(chosen, *self.sets, a, b, low, min(low + step, len(chosen)), out),
            range(0, len(chosen), step),
        )
        return out


class Estimated(NamedTuple):
    """Similarities as shares of equal minima."""

    signatures: NDArray[np.uint32]

    def similarity(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """Shares (p,) of minima in which pairs of texts are equal."""
        from hf_prune.dedup import _link_kernels

        out = np.empty(len(left))
        _link_kernels.agreements(left, right, self.signatures, 0, len(left), out)
        return out

    def minima(self, chosen: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Minima (k, n) of some texts."""
        return np.ascontiguousarray(self.signatures[chosen].T)


Measure = Verified | Estimated
