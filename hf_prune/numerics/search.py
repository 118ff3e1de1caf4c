"""The nearest of a few directions or points: low precision finds, float64 tells.

Products of a block are taken in float32, or in bfloat16 on a processor with tiles for it (AMX), and each has a bound on
its error. What comes within it of the largest is compared in float64, so that the answer does not depend on the path,
nor on a large number that all rows have in common.
"""

from __future__ import annotations

import sys
import threading
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hf_prune.numerics.threads import BLOCK, as_tensor, in_torch_threads, scratch, torch_threads

SCREENED = 64  # directions: with fewer, the product is not what takes the time
ROUNDING = 2.0**-9  # relative, of one number in bfloat16
CROWD = 16  # candidates a row at which comparing them costs more than all products in the next precision
TINY = 2.0**-120  # below it products of float32 vanish


class Directions:
    """(k, d) vectors scaled to length 1 and made ready for many searches.

    Attributes:
        exact: (k, d) float64, to tell.
        across: (d, k) float32, to find.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        exact = np.asarray(vectors, np.float64)
        lengths = np.sqrt(np.einsum("kd,kd->k", exact, exact))
        self.exact = exact / np.where(lengths == 0, 1, lengths)[:, None]
        self.across = np.ascontiguousarray(self.exact.T, np.float32)

    @cached_property
    def rounded(self) -> Any:
        """(d, k) in bfloat16, as a tensor."""
        return as_tensor(self.across).bfloat16()


def largest_cosines(x: np.ndarray, directions: Directions, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Find the `count` (1 or 2) directions with the largest cosine to each row.

    Args:
        x: (n, d) finite rows, of any length.
        directions: k of them, at least `count`.
        count: how many, the largest first.

    Returns:
        (n, count) int64 indices and (n, count) float64 cosines; -1 and NaN for zero rows.

    >>> index, cosine = largest_cosines(np.array([[3.0, 4.0], [0.0, 0.0]]), Directions(np.eye(2)))
    >>> index.tolist(), cosine.round(3).tolist()
    ([[1], [-1]], [[0.8], [nan]])
    """
    index = np.empty((len(x), count), np.int64)
    cosine = np.empty((len(x), count))
    screened = count == 1 and _screens(directions)

    def search(part: slice) -> None:
        index[part], cosine[part] = _block(x[part], directions, count, screened)

    in_torch_threads(search, _parts(len(x)))
    return index, cosine


class Points:
    """(k, d) vectors made ready for searches of the nearest one: moved to their mean, and to numbers near 1.

    Attributes:
        vectors: (k, d) float64, as they are.
        exact: (k, d) float64 moved and scaled, to tell.
        halves: (k,) float64 half of the squared lengths of those.
        across: (d + 1, k) float32, to find.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = np.asarray(vectors, np.float64)
        # distances stay what they are, products of what all rows have in common would drown them
        self._mean = self.vectors.mean(axis=0)
        self._scale = power_of_two(self.vectors - self._mean)
        self.exact = self.moved(self.vectors)
        self.halves = 0.5 * np.einsum("kd,kd->k", self.exact, self.exact)
        self.across = np.ascontiguousarray(np.column_stack([self.exact, -self.halves]).T, np.float32)

    def moved(self, x: np.ndarray) -> np.ndarray:
        """Rows (n, d) in the same place and scale, float64."""
        moved: np.ndarray = (np.asarray(x, np.float64) - self._mean) * self._scale
        return moved


def nearest_points(x: np.ndarray, points: Points) -> tuple[np.ndarray, np.ndarray]:
    """Find the point with the smallest Euclidean distance to each row; the lowest of equals.

    Args:
        x: (n, d) finite rows.
        points: k of them.

    Returns:
        (n,) int64 indices, (n,) float64 distances.

    >>> index, distance = nearest_points(np.array([[1e4, 3.0], [1e4, 0.1]]), Points(np.array([[1e4, 0.0], [1e4, 7.0]])))
    >>> index.tolist(), distance.round(6).tolist()
    ([0, 0], [3.0, 0.1])
    """
    index, distance = np.empty(len(x), np.int64), np.empty(len(x))

    def search(part: slice) -> None:
        moved = points.moved(x[part])
        lengths = np.sqrt(np.einsum("nd,nd->n", moved, moved))
        index[part] = _nearest(moved, lengths, points)
        distance[part] = vector_lengths(np.asarray(x[part], np.float64) - points.vectors[index[part]])

    in_torch_threads(search, _parts(len(x)))
    return index, distance


def _nearest(moved: np.ndarray, lengths: np.ndarray, points: Points) -> np.ndarray:
    """Indices (n,) of the nearest points to moved rows: min |x - c| is max of x.c - |c|^2 / 2, a product more wide."""
    index = np.empty((len(moved), 1), np.int64)
    if not len(moved):
        return index[:, 0]
    if lengths.max() < 1e15:  # else products leave the range of float32, as rows so far from all points do
        from hf_prune.numerics import _kernels

        rows = np.column_stack([moved, np.ones(len(moved))]).astype(np.float32)
        longest = float(np.sqrt(2 * points.halves.max()))
        slack = precision(len(points.across)) * (lengths * longest + points.halves.max()) + TINY
        bits = _products(rows, points.across).view(np.int32)
        if _kernels.settle(bits, moved, slack, points.exact, points.halves, CROWD, index):
            return index[:, 0]
    return np.asarray((_exact_products(moved, points.exact) - points.halves).argmax(1))


def precision(d: int) -> float:
    """How far a float32 product of d numbers may be off, as a share of the two lengths."""
    torch = sys.modules.get("torch")
    rounded = torch is not None and torch.get_float32_matmul_precision() != "highest"
    return (d + 8) * 2.0**-24 + (2.02 * ROUNDING if rounded else 0.0)


def power_of_two(x: np.ndarray) -> float:
    """The power of two that brings the largest number to between 1/2 and 1: multiplying by it is exact; 1 for zeros."""
    largest = float(np.abs(x).max(initial=0))
    return float(np.ldexp(1.0, int(np.clip(-np.frexp(largest)[1], -1000, 1000)))) if 0 < largest < np.inf else 1.0


def scaled(x: np.ndarray, scale: float) -> np.ndarray:
    """Rows times their `power_of_two`; in float64 where their own type does not hold it (float32 below 1e-38)."""
    own = x.dtype.type
    return np.asarray(x * (own(scale) if scale < float(np.finfo(own).max) else np.float64(scale)))


def vector_lengths(x: np.ndarray) -> np.ndarray:
    """Euclidean lengths (n,) float64 of rows of any size: no square overflows or vanishes."""
    scale = power_of_two(x)
    if 2.0**-400 < scale < 2.0**400:
        scale = 1.0
    scaled = np.asarray(x, np.float64) * scale
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", scaled, scaled)) / scale)


def unit_into(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Fill `out` with the rows at length 1; the squares (n,) float64 of their lengths."""
    from hf_prune.numerics import _kernels

    squares = np.empty(len(x), np.float32)
    _kernels.unit(np.ascontiguousarray(x), out, squares)
    return squares.astype(np.float64)


def nearest_directions(x: np.ndarray, directions: Directions) -> np.ndarray:
    """Find the direction with the largest cosine to each row, (n,) int64: the first half of `largest_cosines`.

    Args:
        x: (n, d) float32 rows of length 1.
        directions: k of them.
    """
    index = np.empty(len(x), np.int64)
    screened = _screens(directions)

    def search(part: slice) -> None:
        rows = np.ascontiguousarray(x[part])
        if not (screened and _screen(rows, rows, np.ones(len(rows), np.float32), directions, index[part])):
            index[part] = largest_products(rows, directions)[:, 0]

    in_torch_threads(search, _parts(len(x)))
    return index


def _screens(directions: Directions) -> bool:
    return directions.across.shape[1] >= SCREENED and "torch" in sys.modules and tiles()


def _parts(n: int) -> list[slice]:
    """Blocks of n rows: `BLOCK`, the size that products like, or half of it where some thread would have none."""
    pool = torch_threads() if n > BLOCK // 2 else None
    size = BLOCK if pool is None or n >= BLOCK * pool._max_workers else BLOCK // 2
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _block(x: np.ndarray, directions: Directions, count: int, screened: bool) -> tuple[np.ndarray, np.ndarray]:
    from hf_prune.numerics import _kernels

    x = np.ascontiguousarray(x if x.dtype in (np.float32, np.float64) else x.astype(np.float32))
    narrow = x if x.dtype == np.float32 else None
    rough = np.empty(len(x), np.float32)
    if narrow is not None:
        _kernels.lengths(narrow, rough)
    if narrow is None or not (rough.min(initial=1) > 1e-15 and rough.max(initial=1) < 1e15):
        # products would leave the range of float32
        wide = x.astype(np.float64)
        largest = np.abs(wide).max(axis=1, keepdims=True, initial=0)
        x = wide / np.where(largest == 0, 1, largest)
        narrow = x.astype(np.float32)
        _kernels.lengths(narrow, rough)
    index = np.empty((len(x), count), np.int64)
    if not (screened and _screen(narrow, x, rough, directions, index[:, 0])):
        index = largest_products(narrow, directions, count, x, rough)
    cosine = np.empty((count, len(x)))
    for column in range(count):
        _kernels.cosines(x, index[:, column].copy(), directions.exact, cosine[column])
    cosine = cosine.T
    index[np.isnan(cosine[:, 0])] = -1
    return index, cosine


def largest_products(
    x: np.ndarray,
    directions: Directions,
    count: int = 1,
    exact: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
) -> np.ndarray:
    """Indices (b, count) of the directions with the largest products, the largest first; the lowest of equals.

    Float32 finds, and leaves to float64 what it cannot tell apart.

    Args:
        x: (b, d) float32 rows.
        directions: k of them, at least `count`.
        count: 1 or 2.
        exact: (b, d) the rows in the precision they came in.
        lengths: (b,) of the rows; of length 1 by default.
    """
    from hf_prune.numerics import _kernels

    exact = x if exact is None else exact
    index = np.empty((len(x), count), np.int64)
    slack = precision(x.shape[1]) * (np.ones(len(x)) if lengths is None else lengths.astype(np.float64)) + TINY
    bits = _products(x, directions.across).view(np.int32)
    halves = np.zeros(len(directions.exact))
    if _kernels.settle(bits, exact, slack, directions.exact, halves, CROWD, index):
        return index
    product = _exact_products(exact, directions.exact)
    index[:, 0] = product.argmax(1)
    if count == 2:
        product[np.arange(len(x)), index[:, 0]] = -np.inf
        index[:, 1] = product.argmax(1)
    return index


def _products(x: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Float32 products of (b, d) rows with (d, k) columns, in memory of this thread."""
    torch = sys.modules.get("torch")
    if torch is None:
        return np.asarray(x @ across)
    # it keeps to the threads of whoever calls it; NumPy's library would start its own in every thread
    product = scratch(torch.float32, len(x), across.shape[1])
    torch.mm(as_tensor(x), as_tensor(across), out=product)
    return np.asarray(product.numpy())


def _exact_products(x: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Float64 products of (b, d) rows with (k, d) vectors."""
    wide = np.ascontiguousarray(x, np.float64)
    torch = sys.modules.get("torch")
    return np.asarray(wide @ vectors.T if torch is None else torch.mm(as_tensor(wide), as_tensor(vectors).T).numpy())


def _screen(x: np.ndarray, exact: np.ndarray, length: np.ndarray, directions: Directions, index: np.ndarray) -> bool:
    """Write the index of the largest product of each row, by bfloat16 tiles and float64 for what comes close.

    False where too many directions come close, or where no product is positive.
    """
    import torch

    from hf_prune.numerics import _kernels

    n, k = len(x), directions.across.shape[1]
    tile, product = _tile(BLOCK if n > BLOCK // 2 else BLOCK // 2, x.shape[1], k)
    tile[:n] = as_tensor(x)
    torch.mm(tile, directions.rounded, out=product)
    bits = product.view(torch.int16)[:n].numpy()
    return _kernels.screen(bits, exact, length, directions.exact, np.float32(ROUNDING), CROWD, index)


_local = threading.local()


def _tile(rows: int, width: int, k: int) -> tuple[Any, Any]:
    """Two sizes of product for this thread: each new one is compiled anew."""
    import torch

    tiles_: dict[int, tuple[Any, Any]] = _local.__dict__.setdefault("tiles", {})
    tile = tiles_.get(rows)
    if tile is None or tile[0].shape[1] != width or tile[1].shape[1] != k:
        tile = torch.zeros(rows, width, dtype=torch.bfloat16), torch.empty(rows, k, dtype=torch.bfloat16)
        tiles_[rows] = tile
    return tile


@cache
def tiles() -> bool:
    """Whether the processor multiplies bfloat16 in tiles."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
