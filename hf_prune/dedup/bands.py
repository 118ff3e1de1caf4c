"""Bands of minima: with what chance two texts share one, the best split of the minima into them, and the sketch."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_prune.checks import check_count
from hf_prune.data import identity
from hf_prune.dedup.shingles import Ragged, Unit, check_grams, gram_sets, hashed
from hf_prune.values import Value


def band_probability(similarity: Any, bands: int, band_rows: int) -> Any:
    """Chance `1 - (1 - J ** r) ** b` that two texts of Jaccard similarity J share at least one of b bands of r minima.

    Args:
        similarity: J, a number or an array.
        bands: number of bands b.
        band_rows: number of minima r of a band.

    >>> round(band_probability(0.8, bands=14, band_rows=8), 4)
    0.9235
    """
    return 1 - (1 - similarity**band_rows) ** bands


def optimal_bands(threshold: float, permutations: int, missed_weight: float = 0.5) -> tuple[int, int]:
    """Bands b and minima r of each, b * r <= permutations, with the smallest weighted area of errors.

    The areas are those under the curve of `band_probability` below the threshold (pairs compared in vain) and over
    it above the threshold (pairs missed).

    Args:
        threshold: Jaccard similarity in (0, 1].
        permutations: number of minima there are.
        missed_weight: weight of the pairs missed, in [0, 1]; those compared in vain weigh 1 minus it.

    >>> optimal_bands(0.8, 128), optimal_bands(0.7, 128), optimal_bands(0.5, 128)
    ((9, 13), (14, 9), (25, 5))
    """
    nodes, weights = np.polynomial.legendre.leggauss(128)
    below, above = (nodes + 1) / 2 * threshold, threshold + (nodes + 1) / 2 * (1 - threshold)
    best, found = math.inf, (1, 1)
    for b in range(1, permutations + 1):
        for r in range(1, permutations // b + 1):
            vain = threshold / 2 * float(weights @ band_probability(below, b, r))
            missed = (1 - threshold) / 2 * float(weights @ (1 - band_probability(above, b, r)))
            error = (1 - missed_weight) * vain + missed_weight * missed
            if error < best:
                best, found = error, (b, r)
    return found


def permutations(count: int, seed: int, first: int = 0) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Factors (odd) and terms of x -> a * x + b modulo 2**32, each (count,).

    Args:
        count: number of permutations.
        seed: integer that they are drawn by.
        first: how many numbers to pass over, two a permutation, so as to have others than those.

    >>> [part.tolist() for part in permutations(1, seed=0, first=2)] != [part.tolist() for part in permutations(1, 0)]
    True
    """
    keys = np.arange(first, first + 2 * count, dtype=np.uint64)
    drawn = identity.seeded(keys, seed) >> np.uint64(32)
    return (drawn[:count] | np.uint64(1)).astype(np.uint32), drawn[count:].astype(np.uint32)


@dataclass(frozen=True, eq=False)
class Sketch(Value):
    """How texts become n-grams, minima and keys of bands.

    Args:
        ngram: number of tokens of an n-gram, 5 by default; a text of fewer is one n-gram of all it has, one of none
            has no near-copies.
        unit: what a token is: "word" (the default), "token" (punctuation too) or "char": see `words.tokens`.
        lower: whether case does not count; True by default.
        bands: number of bands, 16 by default.
        band_rows: number of minima of a band, 8 by default.
        seed: integer that the permutations are drawn by, 0 by default.
    """

    _: KW_ONLY
    ngram: int = 5
    unit: Unit = "word"
    lower: bool = True
    bands: int = 16
    band_rows: int = 8
    seed: int = 0

    def check_fields(self) -> None:
        check_grams(self.ngram, self.unit)
        check_count("bands", self.bands)
        check_count("band_rows", self.band_rows)
        identity.check_seed(self.seed)

    def permutations(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Factors (odd) and terms of x -> a * x + b modulo 2**32, each (bands * band_rows,)."""
        return permutations(self.bands * self.band_rows, self.seed)

    def sign(
        self, array: pa.Array, signatures: bool = False
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint32]]:
        """Read the texts of a string array.

        Args:
            array: (n,) texts.
            signatures: whether the minima themselves are wanted.

        Returns:
            Keys of the bands (n, bands), numbers of n-grams (n,) and the signatures (n, bands * band_rows), or none.
        """
        from hf_prune.dedup import _kernels

        n, (a, b) = len(array), self.permutations()
        keys, sizes = np.empty((n, self.bands), np.uint64), np.empty(n, np.int64)
        signed = np.empty((n if signatures else 0, len(a)), np.uint32)

        def use(part: slice, grams: NDArray[np.uint64], ends: NDArray[np.int64]) -> None:
            sizes[part] = np.diff(ends, prepend=0)
            _kernels.sign(grams, ends, a, b, self.band_rows, keys[part], signed[part])

        hashed(array, np.arange(n), use, ngram=self.ngram, unit=self.unit, lower=self.lower)
        return keys, sizes, signed

    def sets(self, array: pa.Array, chosen: NDArray[np.int64]) -> Ragged:
        """Sets of hashed n-grams of the texts `chosen` of a string array."""
        return gram_sets(array, chosen, self.ngram, self.unit, self.lower)
