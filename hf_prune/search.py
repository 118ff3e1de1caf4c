"""The largest cosine to a few directions: low precision finds, float64 tells.

On a processor with bfloat16 tiles (AMX) the products of a block are taken in bfloat16. Every direction that the
rounding could have hidden is then compared in float32, so that the answer does not depend on the path.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 1024  # rows of a product
PIECE = 256  # rows told in float64 at a time: they stay in the cache
SCREENED = 128  # directions: with fewer, the product is not what takes the time
ROUNDING = 2.0**-9  # relative, of one number in bfloat16
CROWD = 16  # candidates a row at which comparing them costs more than a float32 product


class Directions:
    """(k, d) vectors scaled to length 1 and made ready for many searches.

    Attributes:
        exact: (k, d) float64, to tell.
        narrow: (k, d) float32, to find.
        across: (d, k), the same.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        exact = np.asarray(vectors, np.float64)
        lengths = np.sqrt(np.einsum("kd,kd->k", exact, exact))
        self.exact = exact / np.where(lengths == 0, 1, lengths)[:, None]
        self.narrow = self.exact.astype(np.float32)
        self.across = np.ascontiguousarray(self.narrow.T)

    @cached_property
    def rounded(self) -> Any:
        """(d, k) in bfloat16, as a tensor."""
        return _tensor(self.across).bfloat16()


def largest_cosines(x: np.ndarray, directions: Directions, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Find the `count` (1 or 2) directions with the largest cosine to each row.

    Args:
        x: (n, d) finite rows, of any length.
        directions: k of them, at least `count`.
        count: how many, the largest first.

    Returns:
        (n, count) int64 indices and (n, count) float64 cosines; -1 and NaN for zero rows.

    >>> found, cosine = largest_cosines(np.array([[3.0, 4.0], [0.0, 0.0]]), Directions(np.eye(2)))
    >>> found.tolist(), cosine.round(3).tolist()
    ([[1], [-1]], [[0.8], [nan]])
    """
    found = np.empty((len(x), count), np.int64)
    cosine = np.empty((len(x), count))
    screened = count == 1 and _screens(directions)

    def search(start: int) -> None:
        part = slice(start, start + BLOCK)
        found[part], cosine[part] = _block(x[part], directions, count, screened)

    _each(range(0, len(x), BLOCK), search)
    return found, cosine


def nearest_directions(x: np.ndarray, directions: Directions) -> np.ndarray:
    """Find the direction with the largest cosine to each row, (n,) int64, in float32: the first half of the above.

    Args:
        x: (n, d) float32 rows of length 1.
        directions: k of them.
    """
    found = np.empty((len(x), 1), np.int64)
    ones = np.ones(min(BLOCK, len(x)), np.float32)
    screened = _screens(directions)

    def search(start: int) -> None:
        part = x[start : start + BLOCK]
        near = _screen(part, ones[: len(part)], directions) if screened else None
        found[start : start + BLOCK] = largest_products(part, directions.across) if near is None else near

    _each(range(0, len(x), BLOCK), search)
    return found[:, 0]


def _screens(directions: Directions) -> bool:
    return directions.across.shape[1] >= SCREENED and "torch" in sys.modules and tiles()


def _each(starts: range, search: Callable[[int], None]) -> None:
    """Search every block, in the threads there are."""
    pool = _threads() if len(starts) > 1 else None
    for _ in map(search, starts) if pool is None else pool.map(search, starts):
        continue


def _block(x: np.ndarray, directions: Directions, count: int, screened: bool) -> tuple[np.ndarray, np.ndarray]:
    narrow = x.astype(np.float32, copy=False)
    rough = np.sqrt(np.einsum("nd,nd->n", narrow, narrow))
    if not (rough.min() > 1e-15 and rough.max() < 1e15):  # products would leave the range of float32
        wide = x.astype(np.float64)
        largest = np.abs(wide).max(axis=1, keepdims=True)
        x = wide / np.where(largest == 0, 1, largest)
        narrow = x.astype(np.float32)
        rough = np.sqrt(np.einsum("nd,nd->n", narrow, narrow))
    found = _screen(narrow, rough, directions) if screened else None
    if found is None:
        found = largest_products(narrow, directions.across, count)
    cosine = np.concatenate(
        [_told(x[i : i + PIECE], found[i : i + PIECE], directions.exact) for i in range(0, len(x), PIECE)]
    )
    if count == 2:  # float32 may have put two equals the wrong way round
        turned = cosine[:, 1] > cosine[:, 0]
        cosine[turned], found[turned] = cosine[turned, ::-1], found[turned, ::-1]
    found[np.isnan(cosine[:, 0])] = -1
    return found, cosine


def _told(x: np.ndarray, found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Cosines in float64 of a few rows to the directions found for them; NaN for zero rows."""
    wide, near = _room(x.shape)
    wide[:] = x
    length = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    length[length == 0] = np.nan
    cosine = np.empty(found.shape)
    for column in range(found.shape[1]):
        np.take(exact, found[:, column], axis=0, out=near, mode="clip")
        cosine[:, column] = np.einsum("nd,nd->n", wide, near) / length
    return cosine


def largest_products(x: np.ndarray, across: np.ndarray, count: int = 1) -> np.ndarray:
    """Indices of the largest float32 products of (b, d) rows with (d, k) columns, (b, count); the lowest of equals."""
    torch = sys.modules.get("torch")
    # torch keeps to the threads of whoever calls it; NumPy's library would start its own in every thread of the pool
    product = x @ across if torch is None else torch.mm(_tensor(x), _tensor(across)).numpy()
    first = product.argmax(1)
    if count == 1:
        return np.asarray(first[:, None])
    product[np.arange(len(x)), first] = -np.inf
    return np.stack([first, product.argmax(1)], axis=1)


def _screen(x: np.ndarray, length: np.ndarray, directions: Directions) -> np.ndarray | None:
    """Index of the largest product of each row, (n, 1), by bfloat16 tiles and float32 for what comes close.

    None where too many directions come close, or where no product is positive.
    """
    import torch

    n, k = len(x), directions.across.shape[1]
    tile, product = _tile(x.shape[1], k)
    tile[:n] = _tensor(x)
    torch.mm(tile, directions.rounded, out=product)
    bits = product.view(torch.int16)[:n]  # in the order of the numbers where they are positive, and read twice as fast
    top = (bits.amax(1).to(torch.int32) << 16).view(torch.float32).numpy()
    # |x.v - x'.v'| <= |x| (two roundings, and the sum in float32), then the product's own; for each of two
    bar = top - 2 * (length * (2 * ROUNDING + 1e-4) + np.abs(top) * ROUNDING * 1.01)
    if not bar.min() > 0:
        return None
    low = (bar.astype(np.float32).view(np.int32) >> 16).astype(np.int16)  # rounded down
    row, column = np.divmod(np.flatnonzero(bits.numpy() >= low[:, None]), k)
    if len(row) > CROWD * n:
        return None
    first = np.searchsorted(row, np.arange(n))
    found = column[first]
    counts = np.diff(first, append=len(row))
    if counts.max() > 1:
        several = np.repeat(counts > 1, counts)
        row, column = row[several], column[several]
        close = np.einsum("nd,nd->n", x[row], directions.narrow[column])
        order = np.lexsort((column, -close, row))
        lead = order[np.flatnonzero(np.diff(row[order], prepend=-1))]
        found[row[lead]] = column[lead]
    return found[:, None]


_local = threading.local()
_pool: ThreadPoolExecutor | None = None


def _threads() -> ThreadPoolExecutor | None:
    """Threads for blocks, each of which computes with one; None where torch is not in use or has one thread.

    One large region for all blocks: a small one for each product costs more than the product when the machine is busy.
    """
    global _pool
    torch = sys.modules.get("torch")
    if torch is None or torch.get_num_threads() < 2:
        return None
    if _pool is None:
        count = torch.get_num_threads()
        ready = threading.Barrier(count + 1)

        def begin() -> None:
            torch.set_num_threads(1)  # of this thread, but also what threads yet to come begin with
            ready.wait()

        _pool = ThreadPoolExecutor(count, "hf_prune", initializer=begin)
        for _ in range(count):
            _pool.submit(int)
        ready.wait()
        torch.set_num_threads(count)
    return _pool


def _forget_threads() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)  # a fork copies no threads


def _room(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Two float64 pieces of this thread: fresh memory for each would cost more than the sums in it."""
    room = getattr(_local, "room", None)
    if room is None or room.shape[2] != shape[1]:
        room = _local.room = np.empty((2, PIECE, shape[1]))
    return room[0, : shape[0]], room[1, : shape[0]]


def _tile(width: int, k: int) -> tuple[Any, Any]:
    """One shape of product for this thread: each new one is compiled anew."""
    import torch

    tile = getattr(_local, "tile", None)
    if tile is None or tile[0].shape[1] != width or tile[1].shape[1] != k:
        tile = torch.zeros(BLOCK, width, dtype=torch.bfloat16), torch.empty(BLOCK, k, dtype=torch.bfloat16)
        _local.tile = tile
    return tile


def _tensor(array: np.ndarray) -> Any:
    """The same memory as a tensor; a copy if it cannot be written to, as torch would warn."""
    import torch

    return torch.from_numpy(array if array.flags.writeable else array.copy())


@cache
def tiles() -> bool:
    """Whether the processor multiplies bfloat16 in tiles."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
