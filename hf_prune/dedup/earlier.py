"""The largest cosine of each row to the rows that stand before it: low precision searches, float64 decides.

Only the lower triangle is computed, in tiles. A tile of rough cosines (bfloat16 where the processor multiplies it in
tiles, else float32) leaves few pairs that could be a row's largest; those are computed in float64. Where it leaves
many, as among rows that differ in their last digits only, the tile is computed again in the next precision.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from hf_prune.numerics.search import ROUNDING, precision, tiles
from hf_prune.numerics.threads import as_tensor, in_torch_threads, scratch

TILE = 256  # rows of a product
WIDE = 2048  # columns of a product at most: together they stay in the cache
CROWD = 24  # pairs a row to be computed in float64, above which the next precision costs less
SMALL = 384  # rows of a group at which making it ready for bfloat16 costs what it saves
LARGE = 1 << 13  # rows of a cluster whose tiles, rather than the clusters, are shared out to the threads


def largest_earlier_plain(x: np.ndarray) -> np.ndarray:
    """Largest cosine of each row to the rows before it, at least 0: the definition, in n * n memory.

    Args:
        x: (n, d) rows, none of them zero.

    Returns:
        (n,) float64 in [0, 1]; 0 for the first row.

    >>> largest_earlier_plain(np.array([[1.0, 0.0], [3.0, 4.0], [0.0, -1.0], [2.0, 0.0]])).round(6).tolist()
    [0.0, 0.6, 0.0, 1.0]
    """
    unit = x.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return np.asarray(np.tril(unit @ unit.T, -1).max(1, initial=0)).clip(0, 1)


def largest_earlier_of_groups(x: np.ndarray, members: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """`largest_earlier_plain` within each of many groups of rows, fast.

    Memory: two to six bytes a number of the largest group (of as many as there are threads), and 10 MB a thread.

    Args:
        x: (n, d) float32 or float64 rows; none of the members is zero.
        members: (m,) numbers of rows, group after group, in the order in which they stand.
        starts: (g + 1,) where each group begins in `members`, and m behind them.

    Returns:
        (m,) float64.
    """
    out = np.zeros(len(members))
    sizes = np.diff(starts)
    small = np.flatnonzero((sizes > 1) & (sizes <= LARGE))
    small = small[np.argsort(-sizes[small], kind="stable")]  # the largest first, or one thread ends late

    def one(number: int) -> None:
        part = slice(starts[small[number]], starts[small[number] + 1])
        group = _Group(x, members[part])
        for begin in range(0, group.n, group.tile):
            group.search(begin, out[part])

    in_torch_threads(one, range(len(small)))
    for number in np.flatnonzero(sizes > LARGE):
        part = slice(starts[number], starts[number + 1])
        group = _Group(x, members[part])
        blocks = range((group.n - 1) // group.tile * group.tile, -1, -group.tile)  # the longest first
        in_torch_threads(lambda begin, group=group, part=part: group.search(begin, out[part]), blocks)  # type: ignore[misc]
    return out.clip(0, 1)


class _Group:
    """Rows `members` (n,) of x, made ready for tiles."""

    def __init__(self, x: np.ndarray, members: np.ndarray) -> None:
        from hf_prune.dedup._earlier_kernels import rounded_rows, scale

        self.n, width = len(members), x.shape[1]
        self.x, self.members = x, members
        self.inverse = np.empty(self.n)
        scale(x, members, self.inverse)
        self.tile = min(TILE, max(64, 1 << (self.n - 1).bit_length()))
        self.shape = -(-self.n // self.tile) * self.tile, width
        # a sum of d products, and the rounding of the rows themselves
        self.error = precision(width)
        self.rounded, self.rounded_error = None, 0.0
        if self.n > SMALL and tiles():
            import torch

            bits = np.zeros(self.shape, np.int16)
            exact, rounded = np.empty((2, width), np.float32)
            room = exact, exact.view(np.int32), rounded, rounded.view(np.int32)
            lost = rounded_rows(x, members, self.inverse, *room, bits)
            self.rounded = as_tensor(bits).view(torch.bfloat16)
            # |u.v - u'.v'| <= |u - u'| |v'| + |u| |v - v'|, and the float32 sum
            self.rounded_error = 2.01 * float(lost) + self.error

    @cached_property
    def narrow(self) -> Any:
        """The rows in float32, of length 1, and zeros to the end of the last tile."""
        from hf_prune.dedup._earlier_kernels import unit_rows

        unit = np.zeros(self.shape, np.float32)
        unit_rows(self.x, self.members, self.inverse, unit)
        return as_tensor(unit)

    def search(self, begin: int, out: np.ndarray) -> None:
        """Write the largest cosines of `tile` rows from `begin` on to all rows before them."""
        best = out[begin : begin + self.tile]
        column, end = 0, min(begin + self.tile, self.n)
        ways = (
            [self._float32, self._float64] if self.rounded is None else [self._bfloat16, self._float32, self._float64]
        )
        while column < end:
            wide = min(WIDE, self.tile << ((-(-(end - column) // self.tile)).bit_length() - 1))  # few shapes of product
            while not ways[0](begin, column, wide, best):
                del ways[0]  # the other columns will be as crowded
            column += wide

    def _bfloat16(self, begin: int, column: int, wide: int, best: np.ndarray) -> bool:
        """Raise `best` by `wide` columns from `column` on; False where rounding leaves too many pairs."""
        import torch

        assert self.rounded is not None
        product = scratch(torch.bfloat16, self.tile, wide)
        torch.mm(self.rounded[begin : begin + self.tile], self.rounded[column : column + wide].T, out=product)
        return self._recompute(product.view(torch.int16).numpy(), begin, column, best)

    def _float32(self, begin: int, column: int, wide: int, best: np.ndarray) -> bool:
        import torch

        product = scratch(torch.float32, self.tile, wide)
        torch.mm(self.narrow[begin : begin + self.tile], self.narrow[column : column + wide].T, out=product)
        return self._recompute(product.view(torch.int32).numpy(), begin, column, best)

    def _float64(self, begin: int, column: int, wide: int, best: np.ndarray) -> bool:
        import torch

        rows, columns = slice(begin, begin + len(best)), slice(column, min(column + wide, self.n))
        left, right = (as_tensor(self.x[self.members[part]] * self.inverse[part, None]) for part in (rows, columns))
        exact = torch.mm(left, right.T).numpy()
        if columns.stop > rows.start:
            exact[np.arange(columns.start, columns.stop) >= np.arange(rows.start, rows.stop)[:, None]] = 0
        np.maximum(best, exact.max(1), out=best)
        return True

    def _recompute(self, bits: np.ndarray, begin: int, column: int, best: np.ndarray) -> bool:
        """Compute in float64 the pairs of a tile that can be largest; False if they are too many."""
        from hf_prune.dedup._earlier_kernels import SEGMENT, recompute, segment_maxima

        bits = bits[: len(best)]
        maxima = np.empty((len(best), -(-bits.shape[1] // SEGMENT)), bits.dtype)
        top = np.empty(len(best), bits.dtype)
        segment_maxima(bits, begin, column, maxima, top)
        half = bits.dtype == np.int16
        largest = ((top.astype(np.int32) << 16) if half else top).view(np.float32).astype(np.float64)
        # a pair is out if its cosine is below the lowest that the rough top can stand for, or what is known already
        error = self.rounded_error if half else self.error
        rough = largest * ROUNDING * 1.01 if half else 0.0  # the product is rounded too, by a share of itself
        bar = np.maximum(largest - 2 * (error + rough), best - error - best * (ROUNDING * 1.01 if half else 0.0))
        low = np.maximum(bar, 0).astype(np.float32).view(np.int32)
        low = (low >> 16).astype(np.int16) if half else low - 1  # rounded down
        limit = CROWD * len(best)
        return bool(recompute(bits, begin, column, maxima, low, self.x, self.members, self.inverse, limit, best))
